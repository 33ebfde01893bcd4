"""The image data: data set cards, split files, archives, decoding, augmentation, batches. Mostly torch-free."""
