"""Edits where a guard of the failing op alone would not do: something made its operand, or comes after it."""

from __future__ import annotations

from pathlib import Path

from .applying import report_of, trains_on, written
from .programs import of_parameter


def test_the_root_that_made_a_zero_denominator_is_guarded(tmp_path: Path) -> None:
    """0 / 0 under a mask, the 0 a root's: behind the division's derivative waits the root's, infinite as well."""
    forward = """
    theta = torch.sqrt(self.w * self.w)
    return torch.where(theta > 0, torch.sin(theta) / theta, 1.0)
    """
    path = written(tmp_path, of_parameter([0.0, 1.0], forward))
    remedy = report_of(path).remedies[0]

    assert remedy.code == "theta = torch.sqrt((self.w * self.w).clamp_min(1e-12))"
    assert remedy.verified
    assert trains_on(path, remedy)


def test_the_matrix_of_a_factor_with_a_zero_diagonal_is_mended(tmp_path: Path) -> None:
    """A clamp of the diagonal leaves the derivative of the factorization, which divides by the same zero."""
    forward = """
    gram = self.w.T @ self.w
    factor = torch.linalg.cholesky_ex(gram)[0]
    return -factor.diagonal().log()
    """
    path = written(tmp_path, of_parameter([[0.0, 0.0], [0.0, 0.0]], forward))
    remedy = report_of(path).remedies[0]

    assert remedy.code is not None and remedy.code.startswith("factor = torch.linalg.cholesky_ex(gram + ")
    assert remedy.verified
    assert trains_on(path, remedy)


def test_factors_that_are_multiplied_again_and_again_are_bounded_closer(tmp_path: Path) -> None:
    """A recurrence multiplies what one exponential made: 148 to the fifth power is much, 7.4 to the fifth is not."""
    forward = """
    x = torch.ones(2)
    decay = torch.exp(self.w)
    for _ in range(5):
        x = x * decay
    return x
    """
    report = report_of(written(tmp_path, of_parameter([100.0, 1.0], forward)))

    assert report.remedies[0].code == "decay = torch.exp(2 * torch.tanh(self.w / 2))"
    assert any("clip_grad_norm_" in (remedy.code or "") for remedy in report.remedies)


def test_a_factor_that_is_used_once_keeps_its_room(tmp_path: Path) -> None:
    """One exponential alone may grow to 148."""
    report = report_of(written(tmp_path, of_parameter([100.0, 1.0], "return 3 * torch.exp(self.w)")))

    assert report.remedies[0].code == "return 3 * torch.exp(5 * torch.tanh(self.w / 5))"


def test_labels_are_not_selected_in_place_where_the_terms_stay_apart(tmp_path: Path) -> None:
    """The next line selects from the terms by a mask of the whole label: it would not fit the selected ones."""
    forward = """
    target = torch.tensor([1.0, float("nan")])
    terms = F.mse_loss(self.w, target, reduction="none")
    return terms[~target.isnan()]
    """
    path = written(tmp_path, of_parameter([0.5, 1.0], forward))
    for remedy in report_of(path).remedies:
        if remedy.replaces is not None:
            assert trains_on(path, remedy)
