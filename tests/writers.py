"""Reading what writers wrote: the events in TensorBoard's files, and a stand-in for Weights & Biases."""

import struct
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def written(folder: Path) -> Iterator[Any]:
    """The events of a folder's files: each is its length, a checksum, the event, a checksum."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content = memoryview(path.read_bytes())
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            yield event_pb2.Event.FromString(bytes(content[12 : 12 + length]))
            content = content[16 + length :]


def series(folder: Path, tag: str) -> list[tuple[int, float]]:
    found = [(each.step, value) for each in written(folder) for value in each.summary.value if value.tag == tag]
    return [(step, value.simple_value) for step, value in found]


class FakeRun:
    """As much of a run as is used; its service drops steps that go back, as the real one does."""

    def __init__(self, service: "FakeService", settings: dict[str, Any]):
        self._rows = service.runs.setdefault(settings["id"], {})
        self.finished: int | None = None
        self.artifacts: list[FakeArtifact] = []

    @property
    def step(self) -> int:
        return max(self._rows, default=-1) + 1

    def log(self, values: dict[str, float], step: int, commit: bool) -> None:
        assert self.finished is None
        assert commit  # else a generation is sent with the next one, and lost where there is none
        assert step >= self.step, "a step went back"
        self._rows[step] = values

    def log_artifact(self, artifact: "FakeArtifact") -> None:
        self.artifacts.append(artifact)

    def finish(self, exit_code: int) -> None:
        self.finished = exit_code


class FakeArtifact:
    """Notes the names of its files."""

    def __init__(self, name: str, type: str):
        self.name, self.type, self.files = name, type, list[str]()

    def add_file(self, path: str) -> None:
        assert Path(path).is_file()
        self.files.append(Path(path).name)


class FakeService(types.ModuleType):
    """In place of the package ``wandb``: remembers runs by id, over processes as it were."""

    Artifact = FakeArtifact

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: dict[str, dict[int, dict[str, float]]] = {}
        self.calls: list[dict[str, Any]] = []
        self.opened: list[FakeRun] = []

    def init(self, **settings: Any) -> FakeRun:
        self.calls.append(settings)
        self.opened.append(FakeRun(self, settings))
        return self.opened[-1]
