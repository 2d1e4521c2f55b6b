"""Python imports this module when it starts, in each process below `hf-warmcos run`. It loads next to nothing.

Any Python may run below that command: another version, or one without this package. Hence no newer syntax here.
"""

import os
import sys


def run_hidden_sitecustomize() -> None:
    """Run the `sitecustomize` of the environment or of another tool, which this module hides."""
    folder, this = os.path.dirname(__file__), sys.modules.pop(__name__)
    sys.path.remove(folder)
    try:
        __import__(__name__)
    except ImportError as error:
        if error.name != __name__:
            raise
    finally:
        sys.modules.setdefault(__name__, this)
        sys.path.insert(0, folder)


class RegisterAtImport:
    """A finder that finds nothing, but registers the schedule before a library with a table of schedules is imported.

    The registry puts a finder of its own behind this one, which enters the schedule into that table.
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name in ("transformers.optimization", "transformers.trainer", "diffusers.optimization"):
            try:
                import hf_warmcos.registry  # noqa: F401
            except Exception as error:
                sys.stderr.write(f"hf-warmcos run: no schedule in {sys.executable}: {type(error).__name__}: {error}\n")


def report_at_exit(unused: str) -> None:
    """Write a line if the process ends well and no process has asked for the schedule: then the folder is still there.

    Python does not tell its exit functions the exit code. What they see: the argument of `sys.exit`, `sys.last_type`
    after an exception, a `__main__` that is still built in where there was no script, and a script that still has its
    `__file__` after `raise SystemExit`, whatever the code.
    """
    import atexit

    pid, python_exit, codes = os.getpid(), sys.exit, []

    def exit(code=None):  # type: ignore[no-untyped-def]
        codes.append(code)
        python_exit(code)

    def report() -> None:
        left_over = [folder for folder in (unused, unused + "-trainer") if os.path.isdir(folder)]
        if os.getpid() == pid and left_over:
            for folder in left_over:
                os.rmdir(folder)
            main = sys.modules["__main__"]
            left = codes[-1] if codes else main.__spec__ is None and hasattr(main, "__file__")
            if left or hasattr(sys, "last_type") or isinstance(main.__loader__, type):
                return
            if unused in left_over:
                sys.stderr.write('hf-warmcos run: no schedule was asked for by the name "cosine_with_restarts": ')
                sys.stderr.write("the command has no option for it, was given another name, or has a DeepSpeed ")
                sys.stderr.write('configuration with a "scheduler" section\n')
            if unused + "-trainer" in left_over:
                sys.stderr.write("hf-warmcos run: nothing was evaluated or saved at cycle ends: no Trainer trained\n")

    os.makedirs(unused, exist_ok=True)
    if "HF_WARMCOS_AT_CYCLE_ENDS" in os.environ:
        os.makedirs(unused + "-trainer", exist_ok=True)
    sys.exit = exit
    atexit.register(report)


try:
    run_hidden_sitecustomize()
finally:
    sys.meta_path.insert(0, RegisterAtImport())
    folder = os.environ.get("HF_WARMCOS_UNUSED", "")
    if os.path.basename(folder).startswith(f"hf-warmcos-{os.getpid()}-"):  # the first process of the command
        report_at_exit(folder)
