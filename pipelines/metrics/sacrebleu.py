"""BLEU of generated texts, from 0 to 100, by the sacrebleu package."""

import datasets
import evaluate
import sacrebleu


class Sacrebleu(evaluate.Metric):
    """Corpus BLEU with sacrebleu's tokenisation; texts may have different numbers of references."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="Corpus BLEU, from 0 to 100.",
            citation="",
            inputs_description="predictions: texts; references: for each a list of texts.",
            features=datasets.Features({"predictions": text, "references": [text]}),
        )

    def _compute(self, predictions, references):
        most = max(map(len, references))
        padded = [[*gold, *([""] * (most - len(gold)))] for gold in references]
        streams = [list(stream) for stream in zip(*padded, strict=True)]
        return {"score": sacrebleu.corpus_bleu(predictions, streams).score}
