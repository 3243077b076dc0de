"""The tokenizer of the embedded seed model.

Word level: a word includes the space before it, and each digit and each newline is a token of its own. Invariants:
text of the family contains no `<unk>`, decoding restores it exactly, and a text cut at a newline or a space has the
same tokens in parts as whole, which splicing sampled tokens into prompts requires. One line:

    "She buys 7: 12 + 7 = 19"  ->  She| buys| 7|:| 1|2| +| 7| =| 1|9
"""

from __future__ import annotations

from itertools import islice
from random import Random

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from flow_dpo.data.seed import REOPEN_WORDS, STOP_CHOICES, STOP_PREFIX, STOP_SUFFIX
from flow_dpo.data.seed.family import iter_stories
from tools.seed_model.corpus import write_attempt

SPECIALS = ["<pad>", "<unk>", "<user>", "<assistant>", "<system>", "<end>"]
PAD_ID, END_ID = SPECIALS.index("<pad>"), SPECIALS.index("<end>")
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] != 'system' or m['content'] %}"
    "{{ '<' + m['role'] + '>' + m['content'] + '<end>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
MAX_TOKENS = 512

_PATTERN = r"\n| ?[A-Za-z]+| ?[0-9]| ?[^\sA-Za-z0-9]|\s"


def build_tokenizer(num_stories: int = 5000) -> PreTrainedTokenizerFast:
    """The tokenizer whose vocabulary covers the corpus' first stories, their solutions and the prompts."""
    split = Split(Regex(_PATTERN), behavior="isolated")
    words = {f"{space}{digit}" for space in ("", " ") for digit in range(10)}
    texts = [STOP_PREFIX.format(question=""), STOP_SUFFIX, REOPEN_WORDS, *STOP_CHOICES]
    for index, story in enumerate(islice(iter_stories("pretrain"), num_stories)):
        texts += [story.question, story.solution, write_attempt(story, Random(f"vocabulary {index}"))[0]]
    for text in texts:
        words.update(piece for piece, _ in split.pre_tokenize_str(text))
    vocabulary = {word: index for index, word in enumerate([*SPECIALS, *sorted(words)])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        additional_special_tokens=["<user>", "<assistant>", "<system>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_TOKENS,
        padding_side="left",
    )
