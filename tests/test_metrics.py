"""Top-k counts of classification against scikit-learn and worked cases."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, top_k_accuracy_score

from classification.metrics import TopK, best_classes, chance_level, mean_softmax


def counted(labels, top, classes):
    counts = TopK(classes)
    counts.update(labels, top)
    return counts


def test_top_k_accuracy_equals_scikit_learns():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 12, 501)
    labels[:12] = np.arange(12)
    scores = rng.normal(size=(501, 12))
    top, _ = best_classes(torch.from_numpy(scores))
    metrics, missing = counted(labels, top.numpy(), 12).compute()
    for k in (1, 5):
        expected = 100 * top_k_accuracy_score(labels, scores, k=k)
        assert metrics[f"top{k}_accuracy"] == pytest.approx(expected, abs=1e-12)
        assert metrics[f"top{k}_error"] == pytest.approx(100 - expected, abs=1e-12)
    assert missing == {}


def test_a_worked_case_counts_by_hand():
    labels = np.array([2, 0, 1])
    scores = torch.tensor(
        [[0.1, 0.2, 0.7, 0, 0, 0], [0.3, 0.4, 0.1, 0.1, 0.1, 0], [0.5, 0, 0.2, 0.1, 0.1, 0.1]]
    )
    top, _ = best_classes(scores)
    # Right at once; right as second; class 1 has the lowest score of six and is no top-5 answer.
    counts = counted(labels, top.numpy(), 6)
    assert (counts.images, counts.correct(1), counts.correct(5)) == (3, 1, 2)
    assert counts.error(1) == pytest.approx(200 / 3)


def test_equal_scores_stand_in_the_order_of_the_classes():
    top, _ = best_classes(torch.zeros(2, 7))
    assert top.tolist() == [[0, 1, 2, 3, 4]] * 2


def test_top5_of_five_classes_is_missing_with_a_reason():
    top, _ = best_classes(torch.eye(5))
    metrics, missing = counted(np.arange(5), top.numpy(), 5).compute()
    assert metrics["top1_error"] == 0
    assert metrics["top5_error"] is None
    assert "5 classes" in missing["top5_error"]


def test_a_class_without_images_has_no_accuracy_but_a_reason():
    top = np.array([[0, 1], [1, 0], [1, 0]])
    rows = counted(np.array([0, 0, 1]), top, 3).compute_per_class(["a", "b", "c"])
    assert [row.value for row in rows] == [50, 100, None]
    assert [row.images for row in rows] == [2, 1, 0]
    assert [row.reason for row in rows] == [None, None, "no image of this class"]


def test_counts_of_parts_add_up_to_those_of_the_whole():
    rng = np.random.default_rng(1)
    labels, top = rng.integers(0, 7, 40), rng.integers(0, 7, (40, 5))
    parts = counted(labels[:13], top[:13], 7)
    parts.update(labels[13:], top[13:])
    assert parts.compute() == counted(labels, top, 7).compute()


def test_the_chance_level_is_that_of_guessing():
    assert [chance_level(classes) for classes in (1, 2, 1000)] == [0, 50, 99.9]


def test_scores_of_several_views_are_the_mean_of_their_softmax():
    logits = torch.randn(4, 3, 6)
    expected = sum(torch.softmax(logits[:, v].double(), 1) for v in range(3)) / 3
    assert torch.allclose(mean_softmax(logits), expected, atol=1e-15)
    labels = np.array([0, 1, 2, 3])
    loss = -np.log(expected[range(4), labels].numpy()).mean()
    assert loss == pytest.approx(log_loss(labels, expected.numpy(), labels=range(6)))
