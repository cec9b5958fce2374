"""The copy of a run's metrics that wandb gets: it may fail, hang or die, and the run goes on."""

import contextlib
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import wandb

from rl.config import WandbMode

START_S = 120.0  # wandb's own limit is 90 s
FINISH_S = 120.0  # to bring what is left to the server
DIE_S = 10.0


class WandbCopy:
    """All calls of wandb, in a thread that nothing of the run waits for without end."""

    def __init__(
        self, folder: Path, *, name: str, mode: WandbMode, say: Callable[[str], None]
    ) -> None:
        """Start wandb, with its files in `folder`; `say` hears why there is no copy any more."""
        self._folder, self._name, self._mode, self._say = folder, name, mode, say
        self._steps: queue.SimpleQueue[tuple[int, dict[str, float]] | None] = queue.SimpleQueue()
        self._started = threading.Event()
        self._told = False
        # A daemon: one that hangs does not keep the process.
        self._thread = threading.Thread(target=self._copy, name="wandb", daemon=True)
        self._thread.start()
        self._started.wait(START_S)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Copy the metrics of one step, soon."""
        self._steps.put((step, dict(metrics)))

    def close(self) -> None:
        """Finish wandb's files, and its process: a run that is started again starts another."""
        self._steps.put(None)
        self._thread.join(FINISH_S)
        if self._thread.is_alive():
            self._told = True
            self._say(
                f"WARNING: wandb did not finish within {FINISH_S:g} s and is ended; what it has "
                f"not sent lies in {self._folder / 'wandb'}: wandb sync"
            )
            _kill()  # at the end of this process it would be waited for once more
            self._thread.join(DIE_S)

    def _copy(self) -> None:
        try:
            run = wandb.init(
                project="temper",
                name=self._name,
                dir=self._folder,
                mode=self._mode.value,
                settings=wandb.Settings(silent=True, console="off"),
            )
            self._started.set()
            while (each := self._steps.get()) is not None:
                step, metrics = each
                run.log(metrics, step=step)
            run.finish()
            wandb.teardown()
        except Exception as error:  # wandb has many, and the sockets' beside them
            self._give_up(error)
        finally:
            self._started.set()

    def _give_up(self, error: Exception) -> None:
        if not self._told:
            self._say(
                f"WARNING: wandb failed and gets no more of this run: {error!r}. "
                "Only its copy is lost: metrics.jsonl has every step"
            )
        with contextlib.suppress(Exception):  # else the next run would use what has died
            wandb.teardown()


def _kill() -> None:
    """End wandb's processes."""
    ended = [each for each in psutil.Process().children(recursive=True) if "wandb" in each.name()]
    for each in ended:
        each.kill()
    psutil.wait_procs(ended, timeout=DIE_S)
