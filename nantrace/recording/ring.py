"""The ring buffer: the last `capacity` steps of events, bounded in steps and in events per step."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import torch

from ..model import Event, History, StepRecord
from .statistics import Board

MAX_EVENTS_PER_STEP = 8192  # 128 KiB of numbers a step; past it events are counted, not kept

# (kind, module path, output number, elements, dtype): everything of an event but its four numbers
Label = tuple[str, str, int, int, torch.dtype]


@dataclass(slots=True)
class StepRow:
    """One step in the ring: the labels (shared between steps that are alike) and the numbers."""

    step: int
    labels: tuple[Label, ...]
    where: tuple[tuple[torch.device, int], ...]  # per event: the device and the row on its board
    numbers: dict[torch.device, torch.Tensor]
    loss: float | None
    grad_norm: float | None
    lr: float | None
    dropped: int


@dataclass(frozen=True, slots=True)
class _Mark:
    events: int
    loss: float | None
    grad_norm: float | None
    lr: float | None


@dataclass(slots=True)
class Ring:
    """Collects the current step's events, and keeps the finished steps."""

    capacity: int
    rows: deque[StepRow] = field(init=False)
    evicted: int = 0
    loss: float | None = None
    grad_norm: float | None = None
    lr: float | None = None
    dropped: int = 0
    _boards: dict[torch.device, Board] = field(default_factory=dict)
    _labels: list[Label] = field(default_factory=list)
    _where: list[tuple[torch.device, int]] = field(default_factory=list)
    _last_labels: tuple[Label, ...] = ()
    _mark: _Mark | None = None

    def __post_init__(self) -> None:
        self.rows = deque(maxlen=self.capacity)

    def write(self, kind: str, module: str, output: int, values: torch.Tensor) -> int | None:
        """Record one readable tensor; returns the event's number in this step, or None past the bound."""
        number = len(self._labels)
        if number >= MAX_EVENTS_PER_STEP:
            self.dropped += 1
            return None
        device = values.device
        board = self._boards.get(device)
        if board is None:
            board = self._boards[device] = Board(device)
        self._where.append((device, board.write(values)))
        self._labels.append((kind, module, output, values.numel(), values.dtype))
        return number

    def peek(self, number: int) -> torch.Tensor:
        """The four numbers of an event of the running step, on its device."""
        device, row = self._where[number]
        return self._boards[device].row(row)

    def running_bounds(self, kind: str) -> list[tuple[str, float, float]]:
        """Module, minimum and maximum of each event of one kind in the running step, in time order. Waits for it."""
        numbers = {device: board.rows().tolist() for device, board in self._boards.items() if board.used}
        return [
            (label[1], *numbers[device][row][:2])
            for label, (device, row) in zip(self._labels, self._where, strict=True)
            if label[0] == kind
        ]

    def mark(self) -> None:
        """Remember that the step may have ended here: `close` then leaves what came later to the next step."""
        self._mark = _Mark(len(self._labels), self.loss, self.grad_norm, self.lr)

    def close(self, step: int) -> int:
        """End the running step at the mark (or here): its events enter the ring and the oldest step leaves it.

        Returns how many events the ended step took: numbers of later events are smaller by as many from now on.
        """
        mark = self._mark or _Mark(len(self._labels), self.loss, self.grad_norm, self.lr)
        if self.loss is mark.loss:  # the same object: nothing newer was noted after the mark
            self.loss = None
        if self.grad_norm is mark.grad_norm:
            self.grad_norm = None
        labels = tuple(self._labels[: mark.events])
        if labels == self._last_labels:
            labels = self._last_labels  # steps are alike: share the tuple, keep only the numbers
        self._last_labels = labels
        if len(self.rows) == self.capacity:
            self.evicted += 1
        where = tuple(self._where[: mark.events])
        taken = {device: sum(1 for home, _ in where if home == device) for device in self._boards}
        numbers = {device: board.take(taken[device]) for device, board in self._boards.items() if taken[device]}
        self.rows.append(StepRow(step, labels, where, numbers, mark.loss, mark.grad_norm, mark.lr, self.dropped))
        del self._labels[: mark.events]
        self._where = [(device, row - taken[device]) for device, row in self._where[mark.events :]]
        self.dropped = 0
        self._mark = None
        return mark.events

    @property
    def running(self) -> bool:
        """Whether the running step holds anything yet."""
        return bool(self._labels) or self.loss is not None

    def count_bad_events(self) -> int:
        """How many events of the step that ended last were not finite; 0 where counting would wait for a device."""
        count = 0
        for device, numbers in self.rows[-1].numbers.items():
            bounds = numbers[:, :2]
            if device.type == "cpu" and not math.isfinite(float(bounds.sum())):
                count += int((~torch.isfinite(bounds).all(dim=1)).sum())
        return count

    def table(self, running_step: int) -> History:
        """Everything in the ring as plain data, the running step under this number (reads the device once per step)."""
        steps: list[StepRecord] = []
        events: list[Event] = []
        for row in (*self.rows, *self._running_row(running_step)):
            steps.append(StepRecord(row.step, row.loss, row.grad_norm, row.lr, len(row.labels), row.dropped))
            numbers = {device: rows.tolist() for device, rows in row.numbers.items()}
            for order, (label, (device, position)) in enumerate(zip(row.labels, row.where, strict=True)):
                events.append(_event(row.step, order, label, numbers[device][position]))
        return History(tuple(steps), tuple(events), self.capacity, self.evicted)

    def _running_row(self, step: int) -> list[StepRow]:
        if not self.running:
            return []
        numbers = {device: board.rows() for device, board in self._boards.items() if board.used}
        where = tuple(self._where)
        return [StepRow(step, tuple(self._labels), where, numbers, self.loss, self.grad_norm, self.lr, self.dropped)]


def _event(step: int, order: int, label: Label, numbers: list[float]) -> Event:
    kind, module, output, numel, dtype = label
    low, high, total, norm = numbers
    finite = low - low == 0 and high - high == 0
    count = max(1, numel)
    name = str(dtype).removeprefix("torch.")
    return Event(step, order, kind, module, output, numel, name, low, high, total / count, norm / count**0.5, finite)
