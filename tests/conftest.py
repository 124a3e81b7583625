"""A small project of a user's own, for tests that run the command: images, a network, its weights."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from pxp_optimize.optimize.options import Options
    from pxp_optimize.optimize.study.prepare import Prepared
    from torch import nn

# Networks this small are many times slower on several threads, above all where xdist's workers have the cores already.
# PyTorch reads this when it is imported, and so does every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("unhurried", deadline=None)  # tests say nothing of time, on machines as busy as may be
settings.load_profile("unhurried")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n` the tests of a module run in one worker, since they share what the module makes once: a study, mostly.
    In the order of the folders, where the last modules are short ones, so that workers end together."""
    if config.getoption("dist") != "load":  # somebody asked for another way
        return None
    from xdist.scheduler import LoadScopeScheduling

    config.option.loadscopereorder = False  # which would leave for the end what has few tests, and long ones
    return LoadScopeScheduling(config, log)


def pytest_collection_finish() -> None:
    """What is imported by now stays: the collector need not look through it again and again, above all while networks
    are exported (7 % of the time)."""
    gc.collect()
    gc.freeze()


CLASSES = ("blue", "green", "red")
SIZE = 16
NETWORK = '''
from torch import nn

def small():
    """Four convolutions, so that every depth group has one."""
    widths = (3, 8, 8, 12, 12)
    layers = []
    for i, (before, after) in enumerate(zip(widths, widths[1:])):
        layers += [nn.Conv2d(before, after, 3, padding=1, stride=1 + i % 2), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(nn.Sequential(*layers), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3))

def transformer():
    """Four encoder layers, so that every depth group has one; not trained."""
    import torch
    from torchvision.models import VisionTransformer
    torch.manual_seed(0)
    model = VisionTransformer(16, 8, num_layers=4, num_heads=2, hidden_dim=8, mlp_dim=12, num_classes=3)
    nn.init.normal_(model.heads.head.weight)
    return model
'''


SERVER = """
import atexit, contextlib, gc, importlib, json, os, runpy, signal, sqlite3, sys, threading
import torchvision
from pxp_optimize.optimize.commands.main import main
for line in sys.stdin:
    children, new = [], []
    gc.freeze()  # or each child would copy the memory that its collector looks through
    for job in (jobs := json.loads(line)):
        child = os.fork()
        if child == 0:
            break
        children.append(child)
    if child == 0:
        break
    print(*children, flush=True)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    for job in jobs:
        with contextlib.suppress(OSError, ValueError), open(job["imported"]) as file:
            new += json.load(file)
    print(*statuses, flush=True)
    for name in new:
        with contextlib.suppress(Exception):  # then each imports it for itself
            importlib.import_module(name)
else:
    sys.exit()
for descriptor, path in enumerate((os.devnull, job["out"], job["err"])):
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    os.dup2(file, descriptor)
    os.close(file)
os.chdir(job["folder"])
os.environ.clear()
os.environ.update(job["environment"])
sys.path[:0] = [job["folder"]]
sys.argv[1:] = job["arguments"]
signal.signal(signal.SIGINT, signal.default_int_handler)
there = set(sys.modules)
status = 0
try:
    runpy.run_path(job["script"], run_name="__main__") if job["script"] else main()
except SystemExit as end:
    if isinstance(end.code, str):
        raise
    status = end.code or 0
finally:
    # in their order: some of them refuse to be imported before others
    new = {name: getattr(sys.modules[name], "__file__", None) or "" for name in list(sys.modules) if name not in there}
    # but not what is the folder's own, nor what begins threads of its own when it is imported: a fork has none of them
    kept = [name for name, path in new.items() if path and not path.startswith(job["folder"])]
    with open(job["imported"], "w") as file:
        json.dump([name for name in kept if not name.startswith("onnxruntime")], file)
# as Python ends, but for what it takes apart of all that the server has imported
threading._shutdown()
atexit._run_exitfuncs()
for thing in gc.get_objects():  # of what a database has in files beside it nothing is left
    if isinstance(thing, sqlite3.Connection):
        thing.close()
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)
"""
"""A process that forks one for each command, and then imports what that one had to: a start of PyTorch takes seconds,
and so does what a study needs besides."""


SLOW = re.compile(r"^[a-z][\w ]*(?: \.\.\.|: done in .*|: \d+ of \d+, .*)\n", re.MULTILINE)


class CommandServer:
    """Runs the real command, each time in a process of its own that need not import what an earlier one had to."""

    _running: CommandServer | None = None

    @classmethod
    def running(cls, environment: dict[str, str]) -> CommandServer:
        """The one of this process, started when it is first asked for, and again where the last test has ended it."""
        if cls._running is None or cls._running._process.poll() is not None:
            cls._running = cls(environment)
        return cls._running

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(
        self,
        commands: Sequence[Sequence[str]],
        folder: Path,
        environment: dict[str, str],
        meanwhile: Callable[[int], object] = lambda process: None,
        script: str = "",
    ) -> list[tuple[int, str, str]]:
        """The exit statuses and what was printed, of commands in a folder, all at once. meanwhile: is told the process
        of the last one, and may do something to it. script: what is run in place of the command."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with tempfile.TemporaryDirectory() as own:
            how = {"folder": str(folder), "environment": environment, "script": script}
            jobs = []
            for index, arguments in enumerate(commands):
                paths = {name: os.path.join(own, f"{index}.{name}") for name in ("out", "err", "imported")}
                jobs.append({**how, **paths, "arguments": arguments})
            print(json.dumps(jobs), file=self._process.stdin, flush=True)
            children = [int(child) for child in self._process.stdout.readline().split()]
            # or the tests would wait for them for ever
            late = [threading.Timer(300, os.kill, (child, signal.SIGKILL)) for child in children]
            for timer in late:
                timer.start()
            meanwhile(children[-1])
            statuses = [int(status) for status in self._process.stdout.readline().split()]
            for timer in late:
                timer.cancel()
            said = [[Path(job[name]).read_text() for name in ("out", "err")] for job in jobs]
            return [(status, *texts) for status, texts in zip(statuses, said, strict=True)]  # type: ignore[misc]


@dataclass(frozen=True)
class Project:
    """A folder with `images/train/CLASS/*.png`, `images/val/CLASS/*.png`, `network.py` and `weights.pt`."""

    folder: Path

    @property
    def options(self) -> list[str]:
        """What every run of it needs; a schedule of few steps, since those of the default one take most of the time."""
        return [
            *("--model", "network:small", "--weights", "weights.pt", "--data", "images", "--device", "cpu"),
            *("--image-size", str(SIZE), "--mean", "0.5", "--std", "0.25", "--rates", "0:0.9:0.3"),
            *("--schedule", "every:0.3"),
        ]

    @property
    def python_options(self) -> Options:
        """The same for tests without the command, but for the rates; they run in the folder (`small_options`)."""
        from pxp_optimize.optimize.options import Options

        return Options.parsed(
            model="network:small",
            weights="weights.pt",
            data="images",
            device="cpu",
            image_size=SIZE,
            mean=(0.5,),
            std=(0.25,),
        )

    def prepared(self, **changes: Any) -> Prepared:
        """The task of `python_options` with changes, for a whole test module."""

        from pxp_optimize.optimize.study.prepare import prepare

        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            patch.syspath_prepend(str(self.folder))
            patch.setenv("XDG_CACHE_HOME", str(self.folder / "cache"))
            # images may be read later, too, from another folder
            return prepare(self.python_options.changed(data=str(self.folder / "images"), **changes))

    def network(self) -> Any:
        """The network of `--model`, as its function returns it."""
        namespace: dict[str, Any] = {}
        exec((self.folder / "network.py").read_text(), namespace)
        return namespace["small"]()

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """The real command, in the project's folder."""
        return subprocess.Popen(
            [sys.executable, "-m", "pxp_optimize.optimize.commands.main", *arguments],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_heed_interrupts if os.name == "posix" else None,
        )

    @property
    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(self.folder), os.environ.get("PYTHONPATH", "")]),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
        }

    def run(
        self, *arguments: str, meanwhile: Callable[[int], object] = lambda process: None
    ) -> subprocess.CompletedProcess[str]:
        """The real command to its end, in a process of its own (`CommandServer`). What it says that it is at while it
        is slow is left out: which it is depends on the machine. meanwhile: is told the process."""
        return self.run_at_once([arguments], meanwhile)[0]

    def run_at_once(
        self, commands: Sequence[Sequence[str]], meanwhile: Callable[[int], object] = lambda process: None
    ) -> list[subprocess.CompletedProcess[str]]:
        """Several real commands to their ends, each in a process of its own, begun together. meanwhile: is told the
        last process."""
        if os.name != "posix":
            processes = [self.start(*arguments) for arguments in commands]
            meanwhile(processes[-1].pid)
            said = [process.communicate() for process in processes]
            found = [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]
        else:
            server = CommandServer.running(self._environment)
            found = server.run(commands, self.folder, self._environment, meanwhile)
        return [
            subprocess.CompletedProcess(arguments, status, out, re.sub(SLOW, "", err))
            for arguments, (status, out, err) in zip(commands, found, strict=True)
        ]

    def run_script(self, path: Path) -> subprocess.CompletedProcess[str]:
        """A Python script to its end, in a process of its own, as `run` does the command."""
        if os.name != "posix":
            command = [sys.executable, str(path)]
            return subprocess.run(
                command, cwd=self.folder, env=self._environment, capture_output=True, text=True, check=False
            )
        server = CommandServer.running(self._environment)
        ((status, out, err),) = server.run([[]], self.folder, self._environment, script=str(path))
        return subprocess.CompletedProcess([str(path)], status, out, err)

    def files(self) -> dict[str, object]:
        """The content of every file, of databases as SQL; without caches and SQLite's own files."""
        return {
            str(path.relative_to(self.folder)): _dump(path) if path.suffix == ".db" else path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and "cache" not in str(path) and path.suffix not in (".db-wal", ".db-shm")
        }


def _heed_interrupts() -> None:
    """A shell lets what it starts in the background ignore Ctrl-C, and that is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _dump(path: Path) -> list[str]:
    # by SQLite, since reading the file in another way would drop the locks that this process holds on it
    with contextlib.closing(sqlite3.connect(path)) as database:
        return list(database.iterdump())


@pytest.fixture(scope="session")
def project_source(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project, made once: patches of one colour each on noise, and a network trained on them."""
    import numpy as np
    import torch
    from PIL import Image

    folder = tmp_path_factory.mktemp("project")
    rng = np.random.default_rng(0)
    drawn: dict[str, list[tuple[np.ndarray, int]]] = {"train": [], "val": []}
    for split, count in (("train", 12), ("val", 20)):
        for label, name in enumerate(CLASSES):
            target = folder / "images" / split / name
            target.mkdir(parents=True)
            for index in range(count):
                image = rng.integers(0, 160, (SIZE, SIZE, 3))
                x, y = rng.integers(0, SIZE - 6, 2)
                image[y : y + 6, x : x + 6, 2 - label] += 90
                pixels = image.clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(target / f"{index}.png")
                drawn[split].append((pixels, label))
    (folder / "network.py").write_text(NETWORK)
    namespace: dict = {}
    exec(NETWORK, namespace)
    torch.manual_seed(0)
    model = namespace["small"]()
    inputs = torch.stack([torch.from_numpy(pixels).permute(2, 0, 1) for pixels, _ in drawn["train"]])
    inputs = (inputs / 255 - 0.5) / 0.25
    targets = torch.tensor([label for _, label in drawn["train"]])
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    torch.save(model.state_dict(), folder / "weights.pt")
    return Project(folder)


@pytest.fixture(scope="module")
def project(project_source: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy of the project for one test module."""
    import shutil

    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(project_source.folder, folder, dirs_exist_ok=True)
    return Project(folder)


@pytest.fixture
def empty_project(tmp_path: Path) -> Project:
    """An empty folder to run something in."""
    return Project(tmp_path)


@pytest.fixture
def small_options(project: Project, monkeypatch: pytest.MonkeyPatch) -> Options:
    """The options of the small project, from within its folder."""
    monkeypatch.chdir(project.folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(project.folder / "cache"))
    return project.python_options


@pytest.fixture(scope="session")
def randomise() -> Callable[[nn.Module], nn.Module]:
    """Makes a new network one of which every parameter matters: random BatchNorm statistics, biases and scales,
    no head or class token of zeros. In eval mode, changed in place."""
    import torch

    @torch.no_grad()
    def change(model: nn.Module, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + noise.abs())
            elif name.endswith(("running_mean", "bias")):
                tensor.copy_(0.2 * noise)
            elif tensor.is_floating_point() and (tensor.ndim < 2 or not tensor.any()):
                tensor.add_(0.2 * noise)
            elif tensor.is_floating_point() and "scale" in name:  # convnext's layer scale starts at almost zero
                tensor.copy_(0.5 + 0.2 * noise)
        return model.eval()

    return change


@pytest.fixture(scope="session")
def vision_transformer(randomise: Callable[[nn.Module], nn.Module]) -> Callable[..., nn.Module]:
    """Makes small vision transformers for 16 x 16 images: 4 patches and a class token, 5 classes."""
    import torch
    from torchvision.models import VisionTransformer

    def make(layers: int = 2, heads: int = 4, width: int = 16, mlp: int = 24, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        model = VisionTransformer(
            image_size=16,
            patch_size=8,
            num_layers=layers,
            num_heads=heads,
            hidden_dim=width,
            mlp_dim=mlp,
            num_classes=5,
        )
        return randomise(model)

    return make
