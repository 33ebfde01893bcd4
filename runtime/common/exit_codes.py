"""The exit codes of a step.

| Exit code | |
|---|---|
| 0 | done |
| 1 | a bug, with its traceback |
| 2 | bad input, a folder in use by another run, a full or read-only disk: one line on stderr |
| 130, 143, 129 | stopped by SIGINT (Ctrl-C), SIGTERM, SIGHUP: one line on stderr; the same command resumes |
| 141 | of a command: nobody reads its output any more |
| 137, … | one of several processes was killed by a signal, 128 and its number: one line on stderr |
| 137 | of a runner: its step was killed |
| 69 | S3 did not answer, in any try, or the bytes arrived damaged: one line on stderr; the same command resumes |
| 75 | one of several processes, or the job on several machines, is gone: one line on stderr; the same command resumes |
| 124 | the job on several machines has exceeded its deadline |

`python -m pipeline.local` and `python -m pipeline.repro` end with the code of the step that failed. make prints that
code, and always ends with 2 itself.
"""

BAD_INPUT = 2
NO_READER = 141  # of the output, as where SIGPIPE ends a program
KILLED = 137  # by SIGKILL
UNAVAILABLE = 69  # a server did not answer; another start may succeed
LOST = 75  # the connection to another rank, or to the job, is gone


class JobFailed(SystemExit):
    """Processes of a job have ended before their work was done: the reason, and the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(code)
        self.message, self.exit_code = message, code

    def __str__(self) -> str:
        return self.message
