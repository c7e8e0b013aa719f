"""What the graph shows, what it folds, and that no name can break it."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape

import pytest

from nantrace.model import Cause, Diagnosis, Edge, Op, Snapshot, Status, Symptom
from nantrace.rendering.choosing import choose
from nantrace.rendering.composing import compose, compose_modules
from nantrace.rendering.dot import coarse_dot_source, dot_source
from nantrace.rendering.picture import Box, Cluster, Link
from nantrace.report import Report

from .born_elsewhere import bad_input, embedding_index, nothing_known
from .born_in_ops import gan_log, sqrt_backward
from .builders import NAN, chain, op, report, tensor
from .hostile import hostile
from .overflowing import t5_overflow
from .scenes import REPORTS


def boxes(made: Report) -> dict[str, Box]:
    return {box.id: box for box in compose(made.snapshot, made.diagnosis).root.all_boxes()}


def links(made: Report) -> dict[tuple[str, str], Link]:
    return {(link.tail, link.head): link for link in compose(made.snapshot, made.diagnosis).links}


def titles(cluster: Cluster) -> list[str]:
    return [cluster.title, *(title for inner in cluster.clusters for title in titles(inner))]


def big(width: int = 40, depth: int = 60) -> Report:
    """A dense graph of 2,400 ops whose origin sits in the middle."""
    ops = tuple(
        op(
            row * width + column,
            "add",
            "forward",
            Status.PROPAGATED if row > depth // 2 else Status.CLEAN,
            module=f"block.{row}.{column}",
            outputs=(tensor((4,), nan=4 if row > depth // 2 else 0),),
        )
        for row in range(depth)
        for column in range(width)
    )
    edges = tuple(
        Edge((row - 1) * width + (column + shift) % width, row * width + column, 0)
        for row in range(1, depth)
        for column in range(width)
        for shift in range(6)
    )
    path = tuple(row * width for row in range(depth // 2, depth))
    base = gan_log()
    assert base.snapshot.origin is not None
    origin = replace(base.snapshot.origin, id=path[0])
    return report(replace(base.snapshot, origin=origin, ops=ops, edges=edges, path=path), base.diagnosis)


def test_origin_stands_out() -> None:
    """The origin's box is marked, and says what its operands held."""
    origin = boxes(gan_log())["op15"]

    assert origin.origin
    assert origin.lines[0] == "ORIGIN: generated here"
    assert "(1.0 - fake)[3, 0] = 0" in origin.lines


def test_bad_input_is_the_origin_of_its_picture() -> None:
    """The op that only used the value is not accused."""
    found = boxes(bad_input())

    assert found["source"].origin
    assert not found["op0"].origin


def test_backward_op_is_named_by_its_forward_op() -> None:
    """`div` of the backward pass says nothing; `backward of sqrt` does."""
    origin = boxes(sqrt_backward())["op21"]

    assert (origin.title, origin.backward) == ("backward of sqrt", True)


def test_forward_op_of_a_backward_origin_is_linked() -> None:
    """The forward op is drawn, with a dotted link to its derivative."""
    base = sqrt_backward()
    made = report(replace(base.snapshot, edges=base.snapshot.edges[:-1]), base.diagnosis)

    assert links(made)["op5", "op21"].kind == "derivative"


def test_links_tell_nan_from_inf() -> None:
    """Each kind has its own look, and its count stands on the link."""
    found = links(sqrt_backward())

    assert found["op21", "op22"].kind == "inf"
    assert found["op23", "op24"].kind == "nan"
    assert "24 nan" in found["op23", "op24"].lines


def test_path_ends_at_the_symptom() -> None:
    """The last op of the path leads to the box that says what was noticed."""
    assert boxes(gan_log())["symptom"].title == "the loss = inf"
    assert ("op19", "symptom") in links(gan_log())


def test_loss_is_marked() -> None:
    """The one-element result before the backward pass is called the loss."""
    assert "the loss" in boxes(sqrt_backward())["op6"].lines


def test_long_path_is_folded_in_the_middle() -> None:
    """Both ends of a long path are drawn; what is between is one counted box."""
    found = boxes(t5_overflow())
    folded = [box for box in found.values() if box.look == "fold"]

    assert [box.title for box in folded] == ["14 more ops"]
    assert folded[0].lines == ("on the path", "all non-finite")
    assert {"op101", "op126"} <= set(found)


def test_at_most_sixty_boxes() -> None:
    """A picture of thousands of ops stays a picture."""
    assert len(boxes(big())) <= 60


def test_every_op_is_drawn_folded_or_counted() -> None:
    """Nothing is left out in silence."""
    made = big()
    choice = choose(made.snapshot)
    folded = sum(len(fold.ids) for fold in choice.folds)

    assert len(choice.shown) + folded + choice.unrelated == len(made.snapshot.ops)


def test_ops_past_the_recording_bound_are_mentioned() -> None:
    """What the snapshot itself left out is said in the picture."""
    assert "not drawn: 2,210 more ops of the step" in dot_source(t5_overflow())


def test_modules_are_clusters_with_path_and_type() -> None:
    """Ops that ran in one module stand in its frame."""
    assert "D (Discriminator)" in titles(compose(gan_log().snapshot, gan_log().diagnosis).root)


def test_module_of_a_single_op_stands_in_its_box() -> None:
    """A frame around one box is clutter; the box says where it ran."""
    assert boxes(t5_overflow())["op101"].module.endswith("wo (Linear)")


def test_backward_has_one_frame() -> None:
    """Forward and backward of one module are not mixed; a backward box names its module itself."""
    root = compose(sqrt_backward().snapshot, sqrt_backward().diagnosis).root

    assert titles(root) == ["", "the root module (Metric)", "the backward pass"]
    assert boxes(sqrt_backward())["op24"].module == "embed (Linear)"


def test_seed_of_the_backward_pass_is_not_the_loss() -> None:
    """The engine makes a one for the loss's gradient; the loss is the op before it."""
    base = sqrt_backward()
    ops = (*base.snapshot.ops, op(7, "ones_like", "loss", outputs=(tensor(()),)))
    made = report(replace(base.snapshot, ops=ops), base.diagnosis)

    assert choose(made.snapshot).loss == 6


def test_path_without_edges_is_still_connected() -> None:
    """A value that went through a buffer has no edge; the path shows the step all the same."""
    base = gan_log()
    made = report(replace(base.snapshot, edges=()), base.diagnosis)

    assert ("op15", "op17") in links(made)


def test_origin_without_a_recorded_op_has_a_box() -> None:
    """An exception before anything was recorded still names its op."""
    base = embedding_index()
    made = report(replace(base.snapshot, ops=()), base.diagnosis)

    assert boxes(made)["origin"].title == "embedding"


def test_without_an_origin_the_bad_ops_are_shown() -> None:
    """Where the origin is not known, the ops that held non-finite values are the best there is."""
    ops = tuple(op(number, "add", "forward", Status.PROPAGATED) for number in range(3))
    snapshot = Snapshot(0, "forward", Symptom("loss", value=NAN), ops=ops, edges=chain(ops))
    made = report(snapshot, Diagnosis(Cause.UNDETERMINED, "undetermined"))

    assert {"op0", "op1", "op2", "symptom"} <= set(boxes(made))


def test_modules_view_is_small() -> None:
    """The coarse view has at most a box per module, whatever the number of ops."""
    made = big()

    assert len(compose_modules(made.snapshot, made.diagnosis).root.all_boxes()) <= 65


@pytest.mark.parametrize("make", [*REPORTS.values(), hostile], ids=lambda make: make.__name__)
def test_dot_holds_no_raw_text(make: object) -> None:
    """Every label is one well-formed HTML-like label: text is escaped, quotes and newlines cannot end it."""
    assert callable(make)
    for source in (dot_source(make()), coarse_dot_source(make())):
        assert not set(source) & set("\x1b\x07\r\u202e\u200b")
        assert '<b>"' not in source
        assert "</script>" not in source
        assert source.count("{") == source.count("}") or make is hostile


def test_long_names_are_shortened_in_the_middle() -> None:
    """A 300-character name does not make a picture of two metres."""
    texts = re.findall(r"<(?:b|font[^<>]*)>([^<>]*)</", dot_source(hostile()))

    assert max(len(unescape(text)) for text in texts) <= 115


def test_colour_is_never_alone() -> None:
    """Each status has a shape or border of its own, besides its colour."""
    from nantrace.rendering.palette import LOOKS

    assert len({(look.shape, look.style) for look in LOOKS.values()}) == len(LOOKS)
    assert {status.value for status in Status} <= set(LOOKS)


def test_picture_of_nothing() -> None:
    """With nothing known there is still the symptom."""
    assert list(boxes(nothing_known())) == ["symptom"]


def test_ops_are_plain_data() -> None:
    """The picture is made from the snapshot alone: a loaded dump draws the same."""
    made = gan_log()
    again = report(replace(made.snapshot), made.diagnosis)

    assert all(isinstance(one, Op) for one in made.snapshot.ops)
    assert dot_source(made) == dot_source(again)
