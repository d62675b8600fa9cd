"""CLAP's text tower and tokenizer in, what a model folder keeps of them out.

    sentence ─tokenizer─► input_ids, attention_mask (B, L) ─► layers ─► projection (B, D)

A sound is scored against sentences by softmax(logit_scale * cosine); the projection is not of length 1.
"""

from typing import Any

from torch import Tensor, nn

from model_export.errors import ExportError
from model_export.sources.trained import Text
from service.inference.card import TextTower

TEMPLATE = "This is a sound of {}."  # of transformers' zero-shot pipeline


class ClapTextTower(nn.Module):
    """model: a ClapModel in eval mode. (input_ids, attention_mask), both (B, L), 1 where a token is the
    sentence's own, -> (B, D), as ClapModel.get_text_features before it is brought to length 1."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.text, self.projection = model.text_model, model.text_projection

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        outputs = self.text(input_ids=input_ids, attention_mask=attention_mask)
        embedding: Tensor = self.projection(outputs.pooler_output)
        return embedding


def text_of(model: Any, tokenizer: Any) -> Text:
    """model: a ClapModel; tokenizer: the checkpoint's. Raises ExportError for one that no file can keep."""
    if not getattr(tokenizer, "is_fast", False):
        raise ExportError(
            f"its tokenizer, a {type(tokenizer).__name__}, has no tokenizer.json: add the one that "
            "transformers writes for a fast tokenizer."
        )
    config = model.text_model.config
    positions = config.max_position_embeddings - config.pad_token_id - 1  # they are counted from there
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    return Text(
        tower=ClapTextTower(model).eval(),
        tokenizer=backend.to_str(),
        n_tokens=config.vocab_size,
        card=TextTower(
            max_tokens=min(int(tokenizer.model_max_length), positions),
            logit_scale=float(model.logit_scale_a.exp()),
            template=TEMPLATE,
        ),
    )
