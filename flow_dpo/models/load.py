"""Model loading: base model, tokenizer and chat template, from a folder or the hub.

`model_name_or_path` is a folder, a hub id, or the word "seed" for the model that ships in this package. Invariant:
weights are read from safetensors only, and code that comes with a model runs only with `trust_remote_code`.

    loaded = load_model(ModelSettings(model_name_or_path="Qwen/Qwen2.5-0.5B-Instruct", dtype="bfloat16"))
    loaded.context_tokens, loaded.end_ids       # 32768, frozenset({151643, 151645})
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    utils,
)

from flow_dpo.core.errors import ModelError
from flow_dpo.models.checkpoint import UNREADABLE, check_kind, check_rows, weights
from flow_dpo.models.facts import context_tokens, vocabulary_size
from flow_dpo.models.precision import choose_dtype, warn_of_change
from flow_dpo.models.quantization import check_quantization, loading_options, settle
from flow_dpo.models.render import Renderer
from flow_dpo.models.settings import ModelSettings

SEED_FOLDER = Path(__file__).parent.parent / "data" / "seed" / "model"
_TINY_PARAMETERS = 20_000_000
"""Number of parameters below which a second CPU thread costs more in waiting than it saves, above all on a busy CPU."""

_UNSTATED_TOKENS = 2048
"""Context window of a model that states none, such as BLOOM, whose positions are distances, or a recurrent model."""
_NO_LIMIT = 1 << 24
"""Tokenizers without a limit state a number larger than this."""


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A base model with its renderer, end tokens and context window."""

    model: PreTrainedModel
    renderer: Renderer
    end_ids: frozenset[int]
    context_tokens: int
    """Size of its context window in tokens: prompt and completion together."""
    name: str
    revision: str | None = None
    trust_remote_code: bool = False
    """`revision` and `trust_remote_code` are those of the settings, for other programs that load the model."""

    @property
    def num_tokens(self) -> int:
        """Number of ids of the tokenizer; the embedding can have more rows, which stand for no token."""
        return max(self.renderer.tokenizer.get_vocab().values()) + 1


def load_model(settings: ModelSettings | str) -> LoadedModel:
    """Load model and tokenizer. Raises `ModelError` for a folder without a model, or a model that cannot chat."""
    if isinstance(settings, str):
        settings = ModelSettings(model_name_or_path=settings)
    device = device_of(settings)
    check_quantization(settings.quantization, device)
    config, renderer = load_renderer(settings)
    name = _place(settings)
    shared = _hub(settings)
    dtype = _dtype(settings, config, device)
    generation = load_generation_config(settings, config)
    model = weights(name, config, dtype, **shared, **loading_options(settings.quantization, dtype, device))
    check_rows(renderer, vocabulary_size(model), name)
    if dtype is None:  # known only from the weights
        dtype = choose_dtype(settings.dtype, model.dtype, device)
    if settings.dtype == "auto" and settings.model_name_or_path != "seed":
        warn_of_change(name, _declared(config) or model.dtype, dtype)
    if settings.quantization.wanted:
        settle(model)
    else:
        model.to(device, dtype)  # pyright: ignore[reportArgumentType]
    model.eval()
    if settings.num_threads:
        torch.set_num_threads(settings.num_threads)
    elif model.num_parameters() < _TINY_PARAMETERS:
        torch.set_num_threads(1)
    return LoadedModel(
        model=model,
        renderer=renderer,
        end_ids=end_ids(renderer, generation, settings),
        context_tokens=context_window(config, renderer.tokenizer),
        name=settings.model_name_or_path,
        revision=settings.model_revision,
        trust_remote_code=settings.trust_remote_code,
    )


def blank_model(settings: ModelSettings) -> PreTrainedModel:
    """The model without its weights, on torch's meta device: its code and its sizes. In float32 if the config states no
    precision; never quantised, even if the base is to be. Raises `ModelError`."""
    name = _place(settings)
    try:
        config = AutoConfig.from_pretrained(name, **_hub(settings))
        check_kind(config, name)
        dtype = _dtype(settings, config, device_of(settings)) or torch.float32
        with torch.device("meta"):
            made: Any = AutoModelForCausalLM.from_config(
                config, dtype=dtype, trust_remote_code=settings.trust_remote_code
            )
    except UNREADABLE as error:
        raise ModelError(f"could not load {name} (a folder, or a hub id that can be reached): {error}") from error
    return made.eval()


def load_renderer(settings: ModelSettings) -> tuple[PretrainedConfig, Renderer]:
    """A model's config and renderer, without its weights. Raises `ModelError` as `load_model` does."""
    name, shared = _place(settings), _hub(settings)
    _check_no_adapter(Path(name))
    if Path(name).exists() and not (Path(name) / "config.json").exists():
        raise ModelError(
            f"expected a model folder with a config.json, found {name} without one; "
            "give a folder that transformers can load, or a hub id"
        )
    utils.logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(name, **shared)
        tokenizer = AutoTokenizer.from_pretrained(name, **shared)
    except UNREADABLE as error:
        raise ModelError(f"could not load {name} (a folder, or a hub id that can be reached): {error}") from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    check_kind(config, name)
    if not tokenizer.encode("a", add_special_tokens=False):
        raise ModelError(
            f"expected a tokenizer in {name}, found one that encodes nothing; put its files next to the model's"
        )
    renderer = Renderer(
        tokenizer,
        chat_template=settings.chat_template,
        template_kwargs=settings.template_kwargs,
        template_date=settings.template_date,
    )
    return config, renderer


def load_generation_config(settings: ModelSettings, config: PretrainedConfig) -> GenerationConfig:
    """A model's own generation config, or the one that its config implies. Raises `ModelError` for a file that cannot
    be read, since end tokens would be missing."""
    file = Path(_place(settings)) / "generation_config.json"
    try:
        return GenerationConfig.from_pretrained(_place(settings), revision=settings.model_revision or "main")
    except (OSError, ValueError) as error:
        if file.exists():
            raise ModelError(f"could not read {file}: {error}; correct or remove it") from error
        return GenerationConfig.from_model_config(config)


def _place(settings: ModelSettings) -> str:
    return str(SEED_FOLDER) if settings.model_name_or_path == "seed" else settings.model_name_or_path


def _hub(settings: ModelSettings) -> dict[str, Any]:
    return {"revision": settings.model_revision, "trust_remote_code": settings.trust_remote_code}


def device_of(settings: ModelSettings) -> torch.device:
    """The device to which a model will be loaded. Raises `ModelError` if there is no such device."""
    name = settings.device if settings.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device  # "cuda" becomes "cuda:0"
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"expected a device that torch can use, found {name!r}: {error}; leave --device out"
        ) from error


def dtype_of(settings: ModelSettings) -> str:
    """The precision of a model's weights once loaded: "float32"; "auto" if the checkpoint's config does not state it.

    Recorded with a run, since "auto" can mean another precision on another machine.
    """
    name = _place(settings)
    try:
        config = AutoConfig.from_pretrained(name, **_hub(settings))
    except UNREADABLE as error:
        raise ModelError(f"could not load {name} (a folder, or a hub id that can be reached): {error}") from error
    return str(_dtype(settings, config, device_of(settings)) or "auto").removeprefix("torch.")


def _dtype(settings: ModelSettings, config: Any, device: torch.device) -> torch.dtype | None:
    if settings.dtype == "auto" and settings.model_name_or_path == "seed":
        return torch.float32
    return choose_dtype(settings.dtype, _declared(config), device)


def _declared(config: Any) -> torch.dtype | None:
    """The precision of the checkpoint, if its config states it."""
    return config.dtype or config.get_text_config().dtype


def _check_no_adapter(folder: Path) -> None:
    """Raise `ModelError` for a folder with an adapter: alone, or next to the model that it would be loaded on."""
    if not (folder / "adapter_config.json").exists():
        return
    try:
        base = json.loads((folder / "adapter_config.json").read_bytes()).get("base_model_name_or_path")
    except (ValueError, AttributeError):
        base = None
    raise ModelError(
        f"expected a base model, found an adapter in {folder} (adapter_config.json). To sample with it, give its base "
        f"({base or 'the model it was trained on'}) as the model and the folder as --adapter; to train from it, merge "
        "it into its base first (PEFT's merge_and_unload, then save_pretrained to a folder of its own)"
    )


def context_window(config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """The context that the config states; otherwise the tokenizer's limit; otherwise a usual size, with a warning."""
    stated = context_tokens(config)
    if stated is None and (limit := tokenizer.model_max_length) < _NO_LIMIT:
        stated = int(limit)
    if stated is None:
        warnings.warn(
            f"this model's config states no maximum context ({config.model_type}): prompt and completion together are "
            f"limited to {_UNSTATED_TOKENS} tokens",
            stacklevel=3,
        )
    return stated or _UNSTATED_TOKENS


def end_ids(renderer: Renderer, generation: GenerationConfig | None, settings: ModelSettings) -> frozenset[int]:
    """Every id that ends a turn: the tokenizer's, the generation config's, the settings', and the one that the template
    writes after an assistant's message. Raises `ModelError` without the last two: an answer might never end."""
    tokenizer = renderer.tokenizer
    stated = generation.eos_token_id if generation is not None else None
    found = [tokenizer.eos_token_id, *(stated if isinstance(stated, list) else [stated])]
    given = [tokenizer.convert_tokens_to_ids(token) for token in settings.end_tokens]
    for token, id in zip(settings.end_tokens, given, strict=True):
        if id is None or (id == tokenizer.unk_token_id and token != tokenizer.unk_token):
            raise ModelError(f"expected tokens of this tokenizer in --model.end_tokens, found {token!r}")
    known = frozenset(int(id) for id in [*found, *given] if isinstance(id, int))
    closing = renderer.closing_ids(known)
    if closing:
        return known | {closing[-1]}
    if given:
        return known
    text = (renderer.template.after_answer() or [""])[0]
    ids = renderer.encoder.encode(text, shown={}, after="text")
    shown = ", ".join(repr(token) for token in tokenizer.convert_ids_to_tokens(list(ids))) or "nothing"
    names = tokenizer.convert_ids_to_tokens(sorted(known))
    named = ", ".join(repr(token) for token in names) or "none"
    example = json.dumps([names[0] if names else "<|end|>"], ensure_ascii=False)
    raise ModelError(
        f"expected a chat template that ends an assistant's message with an end token, found that it writes {text!r}, "
        f"in tokens {shown}; the tokenizer and generation config name {named}. Name the token that ends an answer, as "
        f"in --model.end_tokens '{example}', or give another --model.chat_template"
    )
