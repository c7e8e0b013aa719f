"""Early warning: follows the magnitudes of finished steps and tells which will leave their dtype's range.

Only with `forecast=True`. A step costs a few operations on one number per module output and gradient, whatever the
tensors' size; a series is fitted only where it is beyond healthy values and has risen. Numbers on a CUDA device are
copied while the device goes on and used once they have arrived, so a forecast is a step late there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import nan

import torch

from ..model import Forecast
from ..model.trend import LEAST_FACTOR, WINDOWS, falls, leaving_range, worth_judging
from .ring import Label, StepRow

Key = tuple[str, str | None, int]  # kind, module path, output number
_KEPT = max(WINDOWS)
_MAX_SERIES = 8192  # 1.6 MB of magnitudes; further series are not followed
_AT_ONCE = 32  # series fitted in one step
_OWN = 3  # columns that belong to no module
_LOSS, _NORM, _UNFOLLOWED = range(_OWN)


@dataclass(frozen=True, slots=True)
class _Step:
    """The magnitudes of one step, on their way from the devices."""

    number: int
    labels: tuple[Label, ...]
    absmax: dict[int, torch.Tensor]  # by device index, on the CPU once they have arrived
    arrived: tuple[Callable[[], bool], ...]
    loss: float
    grad_norm: float
    scaled: bool


class Forecaster:
    """The magnitudes of the last steps, one column per series, and what they lead to."""

    def __init__(self, parameters: torch.dtype) -> None:
        self.due: list[Forecast] = []  # to be said, the soonest overflow first
        self._waiting: deque[_Step] = deque(maxlen=_KEPT)
        self._keys: list[Key] = [("loss", None, 0), ("gradient norm", None, 0), ("unfollowed", None, 0)]
        self._dtypes = [torch.float32, parameters, torch.float32]
        self._columns: dict[Key, int] = {}
        self._told: set[int] = set()
        self._labels: tuple[Label, ...] = ()
        self._places: dict[int, torch.Tensor] = {}  # the columns of `_labels` in order, by device
        self._steps = [-1] * _KEPT  # the step in each row of the table
        self._row = 0
        self._table = _zeros(64)
        self._judge_from()

    def loss_is(self, dtype: torch.dtype) -> None:
        """The dtype of the loss."""
        if dtype is not self._dtypes[_LOSS]:
            self._dtypes[_LOSS] = dtype
            self._judge_from()

    def step_ended(self, row: StepRow, *, scaled: bool) -> None:
        """Take in a finished step. `scaled`: a GradScaler has multiplied its gradients, and sees to their overflow."""
        magnitudes, arrived = {}, []
        for device, numbers in row.numbers.items():
            absmax = numbers[:, :2].abs().amax(1)
            magnitudes[device] = absmax.to("cpu", non_blocking=True)
            if absmax.is_cuda:
                copied = torch.cuda.Event()
                copied.record(torch.cuda.current_stream(absmax.device))
                arrived.append(copied.query)
        loss = nan if row.loss is None else abs(row.loss)
        norm = nan if row.grad_norm is None else row.grad_norm
        self._waiting.append(_Step(row.step, row.labels, magnitudes, tuple(arrived), loss, norm, scaled))
        while self._waiting and all(has_arrived() for has_arrived in self._waiting[0].arrived):
            self._take_in(self._waiting.popleft())

    def take(self) -> list[Forecast]:
        """What is to be said, once."""
        due, self.due = self.due, []
        return due

    def _take_in(self, step: _Step) -> None:
        if step.labels is not self._labels:
            self._lay_out(step.labels)
        self._row = (self._row + 1) % _KEPT
        self._steps[self._row] = step.number
        values = self._table[self._row].zero_()
        for device, absmax in step.absmax.items():
            values.scatter_reduce_(0, self._places[device], absmax, "amax")
        values[_LOSS], values[_NORM] = step.loss, step.grad_norm
        high = values >= self._least
        if bool(high.any()):
            self._judge(values, high, step)

    def _judge(self, values: torch.Tensor, high: torch.Tensor, step: _Step) -> None:
        lowest = torch.where(self._table > 0, self._table, torch.inf).amin(0)
        rising = (high & (values >= LEAST_FACTOR * lowest)).nonzero().flatten()
        if len(rising) > _AT_ONCE:
            rising = rising[(values / self._least)[rising].topk(_AT_ONCE).indices]  # the nearest to the end
        found = []
        for column in rising.tolist():
            if step.scaled and self._keys[column][0] == "gradient":
                continue
            forecast = self._forecast(column, step.number)
            if forecast is not None:
                found.append(forecast)
                self._told.add(column)
                self._least[column] = torch.inf
        self.due += sorted(found, key=lambda one: one.steps_left)

    def _forecast(self, column: int, step: int) -> Forecast | None:
        dtype = self._dtypes[column]
        limit = torch.finfo(dtype).max
        trend = leaving_range(self._series(column), limit)
        if trend is None or falls(self._series(_LOSS), since=trend.since):
            return None  # while the loss falls, values grow toward what they are to be
        kind, module, _ = self._keys[column]
        name = str(dtype).removeprefix("torch.")
        return Forecast(step, kind, module, trend.value, trend.factor, trend.since, name, limit, trend.steps_left)

    # The table

    def _series(self, column: int) -> list[tuple[int, float]]:
        magnitudes = self._table[:, column].tolist()
        return sorted((number, value) for number, value in zip(self._steps, magnitudes, strict=True) if number >= 0)

    def _lay_out(self, labels: tuple[Label, ...]) -> None:
        """Find the column of each label: a module's calls in one step share one, with their largest value.

        Where their dtypes differ, the smallest range counts.
        """
        places: dict[int, list[int]] = {}
        dtypes: dict[int, torch.dtype] = {}
        for kind, module, output, _, dtype, device in labels:
            column = self._columns.get((kind, module, output))
            if column is None:
                column = self._new_column((kind, module, output))
            known = dtypes.get(column)
            if known is None or (dtype is not known and torch.finfo(dtype).max < torch.finfo(known).max):
                dtypes[column] = dtype
            places.setdefault(device, []).append(column)
        for column, dtype in dtypes.items():
            self._dtypes[column] = dtype
        self._places = {device: torch.tensor(columns, device="cpu") for device, columns in places.items()}
        self._labels = labels
        self._judge_from()

    def _new_column(self, key: Key) -> int:
        column = len(self._keys)
        if column == _MAX_SERIES:
            return _UNFOLLOWED
        self._columns[key] = column
        self._keys.append(key)
        self._dtypes.append(torch.float32)
        if column >= self._table.shape[1]:
            narrow, self._table = self._table, _zeros(2 * column)
            self._table[:, :column] = narrow
        return column

    def _judge_from(self) -> None:
        """From which magnitude on each column is judged."""
        least = [worth_judging(torch.finfo(dtype).max) for dtype in self._dtypes]
        least += [torch.inf] * (self._table.shape[1] - len(least))
        for column in (_UNFOLLOWED, *self._told):
            least[column] = torch.inf
        with torch.inference_mode(False):
            self._least = torch.tensor(least, dtype=torch.float32, device="cpu")


def _zeros(columns: int) -> torch.Tensor:
    with torch.inference_mode(False):  # made inside a user's inference_mode it could not be written later
        return torch.zeros(_KEPT, columns, dtype=torch.float32, device="cpu")
