"""Top-1 and top-5 accuracy as integer counts, for `evaluate.load("training/evaluation/top_k_accuracy")`."""

import datasets
import evaluate
import torch

from .target_ranks import target_ranks

_DESCRIPTION = """\
Top-1 and top-5 accuracy from logits, as counts of correct predictions and as fractions. With fewer than five classes
top-5 is top-K. Equal logits are ordered by their class index; a row with a NaN counts as wrong.
"""

_INPUTS = """
Args:
    predictions: logits, one row of K floats for each sample.
    references: the class of each sample, in [0, K).
Returns:
    top_1_correct, top_5_correct, n: integers.
    top_1, top_5: fractions of n.
"""

_CITATION = """\
@article{han2020model,
  title={Model Rubik's Cube: Twisting Resolution, Depth and Width for TinyNets},
  author={Han, Kai and Wang, Yunhe and Zhang, Qiulin and Zhang, Wei and Xu, Chunjing and Zhang, Tong},
  journal={arXiv preprint arXiv:2010.14819},
  year={2020}
}
"""


class TopKAccuracy(evaluate.Metric):
    """For use outside this trainer, which counts without keeping all logits (`training.evaluation.evaluate`)."""

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(features),
        )

    def _compute(self, predictions: list[list[float]], references: list[int]) -> dict[str, int | float]:
        logits, labels = torch.tensor(predictions), torch.tensor(references)
        n, num_classes = logits.shape
        outside = labels[(labels < 0) | (labels >= num_classes)]
        if len(outside):
            raise ValueError(f"references must lie in [0, {num_classes}), got {outside[0].item()}")
        ranks = target_ranks(logits, labels)
        top_1_correct, top_5_correct = (int((ranks < k).sum()) for k in (1, min(5, num_classes)))
        return {
            "top_1_correct": top_1_correct,
            "top_5_correct": top_5_correct,
            "n": n,
            "top_1": top_1_correct / n,
            "top_5": top_5_correct / n,
        }
