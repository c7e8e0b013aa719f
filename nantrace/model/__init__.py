"""What was seen and what was concluded: frozen plain values. Imports neither torch nor the rest of nantrace."""

from __future__ import annotations

from .cause import Cause as Cause
from .change import Change as Change
from .change import Trial as Trial
from .diagnosis import Diagnosis as Diagnosis
from .diagnosis import Remedy as Remedy
from .example import Example as Example
from .example import OperandValue as OperandValue
from .forecast import Forecast as Forecast
from .history import Event as Event
from .history import History as History
from .history import StepRecord as StepRecord
from .loss_term import LossTerm as LossTerm
from .op import Edge as Edge
from .op import Op as Op
from .op import Status as Status
from .origin import BadSource as BadSource
from .origin import IndexFacts as IndexFacts
from .origin import OptimizerFacts as OptimizerFacts
from .origin import Origin as Origin
from .snapshot import ExceptionFacts as ExceptionFacts
from .snapshot import Expected as Expected
from .snapshot import ReplayFacts as ReplayFacts
from .snapshot import Snapshot as Snapshot
from .snapshot import Symptom as Symptom
from .source import Frame as Frame
from .source import Source as Source
from .summary import TensorSummary as TensorSummary
