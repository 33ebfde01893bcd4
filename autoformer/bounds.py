"""Limits of input from outside, all in one place; docs/configuration.md lists them. Torch-free.

They are far above honest input, and low enough that no file takes more than 1 GB of memory or 20 seconds to refuse.
"""

from pydantic import Field

from autoformer.frozen import Frozen

KB, MB = 2**10, 2**20


class Bounds(Frozen):
    yaml_bytes: int = Field(256 * KB, description="size of a YAML file, or of an override's value")
    json_bytes: int = Field(32 * MB, description="size of a JSON file")
    json_values: int = Field(2_000_000, description="values of a JSON file")
    line_bytes: int = Field(1 * MB, description="size of a line in a file of JSON lines")
    depth: int = Field(64, description="nesting of mappings and lists in YAML and JSON")
    values: int = Field(50_000, description="values of a YAML file, with aliases expanded")
    csv_bytes: int = Field(256 * MB, description="size of a CSV file")
    csv_rows: int = Field(1_500_000, description="rows of a CSV file")
    csv_columns: int = Field(256, description="columns of a CSV file")
    label_bytes: int = Field(64 * KB, description="size of a `.cls` or `.json` file in a shard")
    names_bytes: int = Field(16 * MB, description="size of a `classes.txt`")
    classes: int = Field(100_000, description="classes of a data set; class numbers are below it")
    members: int = Field(10_000_000, description="files in one tar")
    tar_header_bytes: int = Field(1 * MB, description="size of the header of a file in a tar")
    image_file_bytes: int = Field(256 * MB, description="size of an image file, also inside a tar")
    image_bytes: int = Field(
        448 * MB, description="memory to decode one image: about 50 million pixels of PNG, 94 million of JPEG"
    )
    image_sides: int = Field(30, description="longest side of an image, as a multiple of the shortest")
    image_scans: int = Field(2**30, description="pixels of a JPEG of several scans, times these")
    image_header_reads: int = Field(20_000, description="chunks, segments and comments before the pixels of an image")
    image_reads: int = Field(1_000_000, description="chunks, segments and comments of an image file")
    image_tag_numbers: int = Field(
        2**17, description="numbers in one tag of a TIFF file, such as the offsets of its strips"
    )
    archive_bytes: int = Field(512 * MB, description="decompressed size of a `.gz` archive of raw images or of lists")
    expansion: int = Field(100, description="decompressed bytes per byte of any other compressed file, beyond 64 MB")
    list_bytes: int = Field(512 * KB, description="size of a MATLAB file of labels")
    header_bytes: int = Field(16 * MB, description="size of the header of a safetensors file")
    pickle_bytes: int = Field(4 * MB, description="size of the values beside the tensors in a checkpoint of torch")
    params: int = Field(1_000_000_000, description="parameters of a supernet")
    patches: int = Field(10_000, description="patches of an image")
    split_rows: int = Field(100_000_000, description="rows of a split file")
    answer_bytes: int = Field(16 * MB, description="size of one answer of a server, unpacked")
    answer_seconds: float = Field(60.0, description="time for one answer of a server, besides that for its bytes")
    answer_rate: int = Field(16 * KB, description="bytes a second, the least of a larger answer")
    log_bytes: int = Field(256 * MB, description="size of a pod's log, as KFP or Kubernetes returns it")
    listed_pages: int = Field(2000, description="pages of a listing in S3, of 1000 objects each")
    model_files: int = Field(1000, description="files and folders of a registered model")
    model_bytes: int = Field(16_384 * MB, description="size of a file of a registered model")
    served_rows: int = Field(1024, description="images in one request to a served model")
    served_image_bytes: int = Field(
        160 * MB, description="memory for one image in a request: about 18 million pixels of PNG, 33 million of JPEG"
    )
    served_pixels: int = Field(64_000_000, description="pixels of all images in one request together")
    served_text: int = Field(48 * MB, description="characters of all base64 texts in one request together")
    served_seconds: float = Field(6.0, description="time to decode and classify the images of one request")

    def expanded(self, compressed: int) -> int:
        """The largest decompressed size of a file of `compressed` bytes."""
        return 64 * MB + self.expansion * compressed


BOUNDS = Bounds()
