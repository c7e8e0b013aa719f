"""Values that came in, an index that left its table, an update gone wrong, and nothing known."""

from __future__ import annotations

from nantrace.model import (
    BadSource,
    Cause,
    Diagnosis,
    Example,
    ExceptionFacts,
    IndexFacts,
    OperandValue,
    OptimizerFacts,
    Origin,
    Remedy,
    ReplayFacts,
    Snapshot,
    Status,
    Symptom,
)
from nantrace.report import Report

from .builders import NAN, REFUSED, chain, line, op, report, tensor


def bad_input() -> Report:
    """A missing value in the features."""
    source = line("train.py", 23, "out = model(batch['features'])", "model(batch['features'])")
    features = tensor((32, 9), min=-2.2, max=3.1, nan=1, name="mat1", label="input x")
    weight = tensor((9, 64), min=-0.3, max=0.3, name="mat2", label="parameter net.0.weight")
    result = tensor((32, 64), min=-1.9, max=2.5, nan=64)
    ops = (
        op(
            0,
            "addmm",
            "forward",
            Status.PROPAGATED,
            "net.0",
            "Linear",
            "AddmmBackward0",
            None,
            source,
            (features, weight),
            (result,),
        ),
        op(1, "relu", "forward", Status.PROPAGATED, "net.1", "ReLU", outputs=(result,)),
        op(2, "mse_loss", "loss", Status.PROPAGATED, outputs=(tensor((), nan=1),)),
    )
    origin = Origin("addmm", "net.0", "Linear", "AddmmBackward0", source, (features, weight), (result,), id=0)
    snapshot = Snapshot(
        step=2,
        phase="input",
        symptom=Symptom("loss", summary=tensor((), nan=1), value=NAN, where=REFUSED),
        origin=origin,
        path=(0, 1, 2),
        ops=ops,
        edges=chain(ops),
        modules={"": "Net", "net.0": "Linear", "net.1": "ReLU"},
        replay=ReplayFacts(True, ops=21, seconds=0.02),
        source_value=BadSource("input", "batch['features']", features, (17, 4), NAN, entry=""),
    )
    remedies = (
        Remedy("find every such sample before training", "nantrace.scan(loader)"),
        Remedy("drop or impute the sample", "x = torch.nan_to_num(x)", True),
    )
    evidence = ("1 of 288 values of the input is NaN: sample 17, column 4.",)
    return report(snapshot, Diagnosis(Cause.BAD_INPUT, "certain", evidence, remedies))


def embedding_index() -> Report:
    """A token outside the vocabulary: the user's IndexError, explained."""
    source = line("model.py", 14, "x = self.tok(ids) + self.pos", "self.tok(ids)", "forward")
    origin = Origin("embedding", "encoder.tok", "Embedding", None, source, id=7)
    snapshot = Snapshot(
        step=4,
        phase="forward",
        symptom=Symptom("exception", where="the exception left the watched block"),
        origin=origin,
        ops=(op(7, "embedding", "forward", module="encoder.tok", module_type="Embedding", source=source),),
        modules={"": "Net", "encoder.tok": "Embedding"},
        index=IndexFacts("embedding", "indices", 30522, (2, 5), 0, 30522, 3, (30522, 768)),
        exception=ExceptionFacts("IndexError", "index out of range in self"),
    )
    remedies = (
        Remedy("give the table one more row, or map unknown tokens to the unk index", "nn.Embedding(30523, 768)"),
    )
    evidence = ("3 of 512 indices are 30522 or more; the table has 30,522 rows, so 30,521 is the last index.",)
    return report(snapshot, Diagnosis(Cause.INDEXING, "certain", evidence, remedies))


def bad_parameter() -> Report:
    """A parameter that was never initialised, seen since an earlier step."""
    weight = tensor((64, 10), min=-1e30, max=3.0, nan=2, name="weight", label="parameter head.weight")
    source = line("model.py", 9, "return x @ self.weight", "x @ self.weight", "forward")
    ops = (
        op(3, "mm", "forward", Status.PROPAGATED, "head", "Head", source=source, outputs=(tensor((8, 10), nan=16),)),
    )
    snapshot = Snapshot(
        step=5,
        phase="parameters",
        symptom=Symptom("result", "head", tensor((8, 10), nan=16), where="a model's result was about to be used"),
        origin=Origin("mm", "head", "Head", None, source, (weight,), ops[0].outputs, id=3),
        path=(3,),
        ops=ops,
        modules={"": "Net", "head": "Head"},
        source_value=BadSource("parameter", "head.weight", weight, (0, 3), NAN, since_step=3),
    )
    evidence = ("2 of 640 values of head.weight are NaN before the first op of the step.",)
    remedies = (Remedy("initialise it", "nn.init.kaiming_uniform_(self.weight)"),)
    return report(snapshot, Diagnosis(Cause.BAD_PARAMETER, "certain", evidence, remedies))


def optimizer_update() -> Report:
    """Adam in half precision: eps rounds to zero, and the update divides by it."""
    source = line("train.py", 52, "optimizer.step()", "optimizer.step()")
    example = Example(
        (0, 3), NAN, (OperandValue("exp_avg_sq", "state", (0.0,)), OperandValue("grad", "element", (0.0,), (0, 3)))
    )
    snapshot = Snapshot(
        step=1,
        phase="optimizer",
        symptom=Symptom(
            "parameter",
            "fc.weight",
            tensor((10, 8), "float16", min=-0.3, max=0.3, nan=4),
            where="the optimizer Adam has stepped; the weights are poisoned, load a checkpoint",
        ),
        origin=Origin("step", "fc", "Linear", None, source, example=example),
        optimizer=OptimizerFacts("Adam", {"lr": 1e-3, "eps": 1e-8}, "fc.weight", "float16"),
        replay=ReplayFacts(None, ("the update changes the weights, so it is not repeated",)),
    )
    evidence = ("eps = 1e-08 is 0 in float16 (its smallest positive number is 6e-08).",)
    remedies = (
        Remedy("keep the parameters in float32 and use autocast", "model.float()"),
        Remedy("use a larger eps", "torch.optim.Adam(params, eps=1e-4)"),
    )
    return report(snapshot, Diagnosis(Cause.OPTIMIZER, "certain", evidence, remedies))


def nothing_known() -> Report:
    """No replay, no origin: what is left when everything optional is missing."""
    snapshot = Snapshot(step=12, phase="forward", symptom=Symptom("loss", value=NAN))
    return report(snapshot, Diagnosis(Cause.UNDETERMINED, "undetermined"))
