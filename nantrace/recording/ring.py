"""The ring buffer: the last `capacity` steps of events, bounded in steps and in events per step."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import torch

from ..model import Event, History, StepRecord
from .statistics import Board

MAX_EVENTS_PER_STEP = 8192  # 128 KiB of numbers a step; past it events are counted, not kept

# (kind, module path, output number, elements, dtype, device index): everything of an event but its four numbers.
# The device index is torch's: -1 for the CPU.
Label = tuple[str, str, int, int, torch.dtype, int]


class Place:
    """Where events come from: one output of one module, or the gradient that arrives there.

    Steps are alike, so a place keeps its last label: an event costs a reference to it and no new tuple.
    """

    __slots__ = ("kind", "label", "module", "output")

    def __init__(self, kind: str, module: str, output: int) -> None:
        self.kind = kind
        self.module = module
        self.output = output
        self.label: Label = (kind, module, output, -1, torch.float32, -1)

    def relabel(self, values: torch.Tensor) -> Label:
        """The label of a tensor unlike the last one."""
        device = values.get_device()
        self.label = (self.kind, self.module, self.output, values.numel(), values.dtype, device)
        return self.label


@dataclass(slots=True)
class StepRow:
    """One step in the ring: the labels (shared between steps that are alike) and the numbers."""

    step: int
    labels: tuple[Label, ...]
    numbers: dict[int, torch.Tensor]  # by device index; the rows in the order of that device's labels
    loss: float | None
    grad_norm: float | None
    lr: float | None
    dropped: int
    weight_norm: float | None


@dataclass(frozen=True, slots=True)
class _Mark:
    events: int
    rows: dict[int, int]  # on each board
    loss: float | None
    grad_norm: float | None
    lr: float | None
    weight_norm: float | None


@dataclass(slots=True)
class Ring:
    """Collects the current step's events, and keeps the finished steps."""

    capacity: int
    rows: deque[StepRow] = field(init=False)
    evicted: int = 0
    loss: float | None = None
    grad_norm: float | None = None
    lr: float | None = None
    weight_norm: float | None = None
    dropped: int = 0
    _boards: dict[int, Board] = field(default_factory=dict)
    _labels: list[Label] = field(default_factory=list)
    _last_labels: tuple[Label, ...] = ()
    _mark: _Mark | None = None

    def __post_init__(self) -> None:
        self.rows = deque(maxlen=self.capacity)

    def write(self, place: Place, values: torch.Tensor) -> int | None:
        """Record one readable tensor; returns the event's number in this step, or None past the bound."""
        number = len(self._labels)
        if number >= MAX_EVENTS_PER_STEP:
            self.dropped += 1
            return None
        label = place.label
        device = values.get_device()
        if label[3] != values.numel() or label[4] is not values.dtype or label[5] != device:
            label = place.relabel(values)
        board = self._boards.get(device)
        if board is None:
            board = self._boards[device] = Board(values.device)
        board.write(values)
        self._labels.append(label)
        return number

    def first_nan(self) -> str | None:
        """The module path of the running step's first output that holds NaN (reads each device once)."""
        boards = {device: board.rows()[:, 0] for device, board in self._boards.items() if board.used}
        bad = {device: iter(torch.isnan(lowest).tolist()) for device, lowest in boards.items()}
        found = (label[1] for label in self._labels if next(bad[label[5]]) and label[0] == "forward")
        return next(found, None)

    def peek(self, number: int) -> torch.Tensor:
        """The four numbers of an event of the running step, on its device."""
        device = self._labels[number][5]
        row = sum(1 for label in self._labels[:number] if label[5] == device)
        return self._boards[device].row(row)

    def running_bounds(self, kind: str) -> list[tuple[str, float, float]]:
        """Module, minimum and maximum of each event of one kind in the running step, in time order. Waits for it."""
        numbers = {device: iter(board.rows().tolist()) for device, board in self._boards.items() if board.used}
        return [
            (label[1], low, high)
            for label in self._labels
            for low, high, *_ in (next(numbers[label[5]]),)
            if label[0] == kind
        ]

    def mark(self) -> None:
        """Remember that the step may have ended here: `close` then leaves what came later to the next step."""
        rows = {device: board.used for device, board in self._boards.items()}
        self._mark = _Mark(len(self._labels), rows, self.loss, self.grad_norm, self.lr, self.weight_norm)

    def close(self, step: int) -> int:
        """End the running step at the mark (or here): its events enter the ring and the oldest step leaves it.

        Returns how many events the ended step took: numbers of later events are smaller by as many from now on.
        """
        if self._mark is None:
            self.mark()
        mark = self._mark
        assert mark is not None
        if self.loss is mark.loss:  # the same object: nothing newer was noted after the mark
            self.loss = None
        if self.grad_norm is mark.grad_norm:
            self.grad_norm = None
        if self.weight_norm is mark.weight_norm:
            self.weight_norm = None
        labels = tuple(self._labels[: mark.events])
        if labels == self._last_labels:
            labels = self._last_labels  # steps are alike: share the tuple, keep only the numbers
        self._last_labels = labels
        if len(self.rows) == self.capacity:
            self.evicted += 1
        numbers = {device: self._boards[device].take(rows) for device, rows in mark.rows.items() if rows}
        row = StepRow(step, labels, numbers, mark.loss, mark.grad_norm, mark.lr, self.dropped, mark.weight_norm)
        self.rows.append(row)
        del self._labels[: mark.events]
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
        for numbers in self.rows[-1].numbers.values():
            bounds = numbers[:, :2]
            if bounds.is_cpu and not math.isfinite(float(bounds.sum())):
                count += int((~torch.isfinite(bounds).all(dim=1)).sum())
        return count

    def table(self, running_step: int) -> History:
        """Everything in the ring as plain data, the running step under this number (reads the device once per step)."""
        steps: list[StepRecord] = []
        events: list[Event] = []
        for row in (*self.rows, *self._running_row(running_step)):
            events_of_step = len(row.labels)
            steps.append(
                StepRecord(row.step, row.loss, row.grad_norm, row.lr, events_of_step, row.dropped, row.weight_norm)
            )
            numbers = {device: iter(rows.tolist()) for device, rows in row.numbers.items()}
            for order, label in enumerate(row.labels):
                events.append(_event(row.step, order, label, next(numbers[label[5]])))
        return History(tuple(steps), tuple(events), self.capacity, self.evicted)

    def _running_row(self, step: int) -> list[StepRow]:
        if not self.running:
            return []
        numbers = {device: board.rows() for device, board in self._boards.items() if board.used}
        labels = tuple(self._labels)
        return [StepRow(step, labels, numbers, self.loss, self.grad_norm, self.lr, self.dropped, self.weight_norm)]


def _event(step: int, order: int, label: Label, numbers: list[float]) -> Event:
    kind, module, output, numel, dtype, _ = label
    low, high, total, norm = numbers
    finite = low - low == 0 and high - high == 0
    count = max(1, numel)
    name = str(dtype).removeprefix("torch.")
    return Event(step, order, kind, module, output, numel, name, low, high, total / count, norm / count**0.5, finite)
