"""With which code a step ends.

| Exit code | |
|---|---|
| 0 | done |
| 1 | a fault of the program, with its traceback |
| 2 | bad input, a place that another run is at work in, a full or read-only disk: one line on stderr |
| 130, 143, 129 | stopped by SIGINT (Ctrl-C), SIGTERM, SIGHUP: one line on stderr; the same command resumes |
| 137, … | one of several processes was killed by a signal, 128 and its number: one line on stderr |
| 69 | S3 did not answer, in any try, or the bytes arrived damaged: one line on stderr; the same command resumes |
| 75 | one of several processes is gone that another has waited for, or the job on several machines is |
| 124 | the job on several machines has exceeded its deadline |

`make run` and `make repro` end with the code of the step that failed.
"""

BAD_INPUT = 2
UNAVAILABLE = 69  # exit code of a step that a server was away from; another start may succeed
LOST = 75  # exit code of a rank whose connection to another is gone


class JobFailed(SystemExit):
    """Processes have ended before their work was done: why, and the exit code of the one that started them."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(code)
        self.message, self.exit_code = message, code

    def __str__(self) -> str:
        return self.message
