"""Values born outside a function's domain: log of 0, the derivative of sqrt at 0."""

from __future__ import annotations

from dataclasses import replace

from nantrace.model import (
    Cause,
    Diagnosis,
    Edge,
    Example,
    Expected,
    OperandValue,
    Origin,
    Remedy,
    ReplayFacts,
    Snapshot,
    Status,
    Symptom,
)
from nantrace.report import Report

from .builders import INF, REFUSED, chain, line, op, report, tensor


def gan_log() -> Report:
    """A saturated discriminator: log(1 - D(fake)) where D(fake) is exactly 1."""
    code = "d_loss = -(torch.log(real) + torch.log(1.0 - fake)).mean()"
    source = line(
        "train.py",
        41,
        code,
        "torch.log(1.0 - fake)",
        "discriminator_step",
        context=(
            (40, "    real, fake = D(images), D(G(noise).detach())"),
            (41, "    " + code),
            (42, "    d_loss.backward()"),
        ),
    )
    probability = tensor((16, 1), min=0.0, max=0.973, zero=2, name="self")
    result = tensor((16, 1), min=-0.0274, max=-0.01, neg_inf=2)
    scalar = tensor((), pos_inf=1)
    good = tensor((16, 1), min=0.01, max=0.99)
    ops = (
        op(
            10,
            "addmm",
            "forward",
            module="D.fc1",
            module_type="Linear",
            outputs=(tensor((16, 64), min=-3, max=4.1),),
            autograd_node="AddmmBackward0",
        ),
        op(
            11,
            "leaky_relu",
            "forward",
            module="D.act",
            module_type="LeakyReLU",
            outputs=(tensor((16, 64), min=-0.6, max=4.1),),
        ),
        op(12, "addmm", "forward", module="D.fc2", module_type="Linear", outputs=(tensor((16, 1), min=1.2, max=17.4),)),
        op(
            13,
            "sigmoid",
            "forward",
            module="D",
            module_type="Discriminator",
            outputs=(tensor((16, 1), min=0.03, max=1.0),),
        ),
        op(14, "rsub", "loss", source=line("train.py", 41, code, "1.0 - fake"), outputs=(probability,)),
        op(
            15,
            "log",
            "loss",
            Status.GENERATED,
            source=source,
            inputs=(probability,),
            outputs=(result,),
            autograd_node="LogBackward0",
        ),
        op(16, "log", "loss", source=line("train.py", 41, code, "torch.log(real)"), inputs=(good,), outputs=(good,)),
        op(17, "add", "loss", Status.PROPAGATED, source=source, inputs=(good, result), outputs=(result,)),
        op(18, "mean", "loss", Status.PROPAGATED, source=source, inputs=(result,), outputs=(tensor((), neg_inf=1),)),
        op(19, "neg", "loss", Status.PROPAGATED, source=source, inputs=(tensor((), neg_inf=1),), outputs=(scalar,)),
    )
    edges = (*chain(ops[:6]), Edge(15, 17, 1), Edge(16, 17, 0), Edge(17, 18, 0), Edge(18, 19, 0))
    example = Example((3, 0), -INF, (OperandValue("self", "element", (0.0,), (3, 0)),))
    origin = Origin(
        "log", None, None, "LogBackward0", source, (probability,), (result,), example, id=15, aten="aten::log.default"
    )
    snapshot = Snapshot(
        step=9,
        phase="loss",
        symptom=Symptom("loss", summary=scalar, value=INF, where=REFUSED),
        origin=origin,
        path=(15, 17, 18, 19),
        ops=ops,
        edges=edges,
        modules={"": "GAN", "D": "Discriminator", "D.fc1": "Linear", "D.act": "LeakyReLU", "D.fc2": "Linear"},
        replay=ReplayFacts(True, ops=154, seconds=0.12),
        expected=(Expected("-inf in masked_fill", "the program wrote it", 12),),
    )
    remedies = (
        Remedy(
            "use binary_cross_entropy_with_logits on the discriminator's output before the sigmoid",
            "d_loss = F.binary_cross_entropy_with_logits(logits, labels)",
        ),
        Remedy("clamp the operand of the log away from zero", "torch.log((1.0 - fake).clamp_min(1e-6))", True),
        Remedy("train with a smaller learning rate", verified=False),
    )
    evidence = (
        "2 of 16 elements of the operand are exactly 0; log of 0 is -inf.",
        "fake is 1.0 there: the sigmoid before it is saturated in float32 from about 17 on.",
    )
    return report(snapshot, Diagnosis(Cause.LOG_DOMAIN, "certain", evidence, remedies))


def sqrt_backward() -> Report:
    """The derivative of sqrt at 0: forward fine, gradient infinite, then 0 * inf."""
    source = line("model.py", 88, "dist = torch.sqrt(d2.sum(-1))", "torch.sqrt(d2.sum(-1))", "pairwise")
    operand = tensor((8, 8), min=0.0, max=5.25, zero=8, name="self")
    root = tensor((8, 8), min=0.0, max=2.291, zero=8)
    gradient = tensor((8, 8), min=-0.02, max=0.9, pos_inf=8)
    broken = tensor((8, 8, 3), min=-0.2, max=0.4, nan=24)
    ops = (
        op(3, "sub", "forward", module="", module_type="Metric", outputs=(tensor((8, 8, 3), min=-2, max=2),)),
        op(4, "sum", "forward", module="", module_type="Metric", outputs=(operand,), autograd_node="SumBackward1"),
        op(
            5,
            "sqrt",
            "forward",
            module="",
            module_type="Metric",
            source=source,
            inputs=(operand,),
            outputs=(root,),
            autograd_node="SqrtBackward0",
        ),
        op(6, "mean", "loss", outputs=(tensor((), min=1.25, max=1.25),)),
        op(
            20,
            "div",
            "backward",
            module=None,
            forward_id=6,
            outputs=(tensor((8, 8), min=0.0156, max=0.0156),),
            autograd_node="MeanBackward0",
        ),
        op(
            21,
            "div",
            "backward",
            Status.GENERATED,
            "",
            "Metric",
            "SqrtBackward0",
            5,
            source,
            (gradient, root),
            (gradient,),
        ),
        op(
            22,
            "expand",
            "backward",
            Status.PROPAGATED,
            "",
            "Metric",
            "SumBackward1",
            4,
            outputs=(replace(broken, nan=0, pos_inf=24),),
        ),
        op(23, "mul", "backward", Status.PROPAGATED, "", "Metric", "PowBackward0", 4, outputs=(broken,)),
        op(
            24,
            "mm",
            "backward",
            Status.PROPAGATED,
            "embed",
            "Linear",
            "AddmmBackward0",
            outputs=(tensor((3, 10), nan=30),),
        ),
    )
    edges = (*chain(ops), Edge(5, 21, 1))
    example = Example((0, 0), INF, (OperandValue("self", "element", (0.0,), (0, 0)),))
    origin = Origin(
        "sqrt",
        "",
        "Metric",
        "SqrtBackward0",
        source,
        (operand,),
        (gradient,),
        example,
        id=21,
        aten="aten::sqrt.default",
        derivative=True,
        derivative_aten="aten::div.Tensor",
    )
    snapshot = Snapshot(
        step=0,
        phase="backward",
        symptom=Symptom("gradient", "embed.weight", tensor((3, 10), nan=30), where=REFUSED),
        origin=origin,
        path=(21, 22, 23, 24),
        ops=ops,
        edges=edges,
        modules={"": "Metric", "embed": "Linear"},
        replay=ReplayFacts(True, ops=48, seconds=0.03),
    )
    remedies = (Remedy("add eps inside the root", "dist = torch.sqrt(d2.sum(-1) + 1e-12)", True),)
    evidence = (
        "The operand is exactly 0 at 8 of 64 elements, where the derivative 1/(2*sqrt(x)) is infinite.",
        "The forward result there is 0, so the loss itself is finite.",
    )
    return report(snapshot, Diagnosis(Cause.SINGULAR_GRADIENT, "certain", evidence, remedies))
