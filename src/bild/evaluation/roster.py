"""From what the user names to methods that are loaded and ready."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from bild.data.settings import DEFAULT_MAX_NEW_TOKENS, checkpoint_digest
from bild.decoding import PRESETS
from bild.errors import InputError, LoadError, check_count
from bild.evaluation import calm
from bild.evaluation.method import Method, MethodSpec, PeerContext
from bild.evaluation.own import PolicyMethod, drafter_of, policy_of, writing_options_of

if TYPE_CHECKING:
    from bild.decoding import Policy
    from bild.generation import BigLittleDecoder, Pair


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Where methods get their models, and how every text is decoded.

    Args:
        pair: folder or ``bild.json`` of a pair; None: the bundled one.
        large: folder or hub name of the accurate model.
        small: likewise of the cheap one, or ``exit:N``.
        drafter: who drafts for own methods that do not say (docs/drafters.md); None: as the pair says.
        dtype: of own methods that do not name one.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, …; of all methods.
        runtime: of own methods that do not name one.
        trust_remote_code: whether code that comes with a checkpoint may run.
        max_new_tokens: longest continuation, tokens, 1…, default 256; of all methods.
        chat: whether a text is a user's turn, for own methods; None: where a decoder-only
            checkpoint brings a chat template.
        src_lang: language of the texts of a multilingual checkpoint, as it spells it; None: as its tokenizer is set.
        tgt_lang: likewise of the outputs; None: as its generation config says.
        middle: model in between of own methods; None: the pair's own.
        middle_window: longest draft that it is given; None: the pair's own.
        reward: what judges segments, for ``reward``; None: nothing.
    """

    pair: str | None = None
    large: str | None = None
    small: str | None = None
    drafter: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    runtime: str = "eager"
    trust_remote_code: bool = False
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    chat: bool | None = None
    src_lang: str | None = None
    tgt_lang: str | None = None
    middle: str | None = None
    middle_window: int | None = None
    reward: str | None = None

    def __post_init__(self) -> None:
        check_count("max_new_tokens", self.max_new_tokens)

    def choose_pair(self) -> Pair:
        """The two checkpoints and their policy."""
        from bild.generation.pair import choose_pair

        return choose_pair(self.pair, self.large, self.small, self.drafter, self.middle, self.middle_window)

    def describe(self) -> dict[str, Any]:
        """What decides about texts and times, for :attr:`Configuration`: plain JSON values."""
        pair = self.choose_pair()
        own = {key: value for key, value in asdict(self).items() if key != "pair"}
        for key in ("src_lang", "tgt_lang", "drafter", "middle", "middle_window", "reward"):
            # Most runs name none of these, and runs of before should go on.
            if own[key] is None:
                del own[key]
        if self.reward is not None and (digest := checkpoint_digest(self.reward)) is not None:
            own["reward_sha256"] = digest
        return {**own, **pair.describe(), "policy": pair.policy.to_dict()}


@dataclass
class Roster:
    """Methods that are ready, in the user's order, and why the others are not."""

    methods: list[Method] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def close(self) -> None:
        for method in self.methods:
            method.close()


def parse_methods(text: str) -> list[MethodSpec]:
    """Read ``NAME[:key=value]*,…``.

    Raises:
        InputError: an unknown name, a method twice, or none.
    """
    specs = [MethodSpec.parse(part) for part in text.split(",") if part.strip()]
    names = [spec.text for spec in specs]
    if not specs:
        raise InputError(f"no method is named; allowed are {', '.join(_allowed())}")
    for spec in specs:
        if names.count(spec.text) > 1:
            raise InputError(f"method {spec.text!r} is there twice; give each once")
        if spec.name not in (*PRESETS, calm.NAME) and spec.name not in _peers():
            raise InputError(f"method is {spec.name!r}; allowed are {', '.join(_allowed())}")
    return specs


def load_methods(
    specs: Sequence[MethodSpec], setup: Setup, load: Callable[..., BigLittleDecoder] | None = None
) -> Roster:
    """Load every method; a peer that cannot run becomes a reason, an own method an error.

    Args:
        specs: from :func:`parse_methods`.
        setup: models and options.
        load: as :meth:`BigLittleDecoder.from_pretrained`, which is the default.

    Raises:
        InputError: an option a method does not have.
        LoadError: the pair cannot be loaded.
    """
    from bild.generation.middle import check_qualifier
    from bild.generation.rewards import check_reward

    pair = setup.choose_pair()
    policies = {spec.text: policy_of(spec, pair.policy) for spec in specs if spec.name in PRESETS}
    for policy in policies.values():
        check_qualifier(policy, pair.middle is not None)
        check_reward(policy, None, setup.reward)
    drafters = {spec.text: drafter_of(spec) for spec in specs if spec.text in policies}
    for spec in specs:
        if spec.text in policies:
            _check_writing(spec)
            _check_small(spec, policies[spec.text], drafters[spec.text], pair)
    rules = {spec.text: calm.rule_of(spec, setup.max_new_tokens) for spec in specs if spec.name == calm.NAME}
    decoders = _Decoders(setup, load)
    roster = Roster()
    for spec in specs:
        try:
            if spec.text in policies:
                roster.methods.append(_own(spec, decoders.of(spec), policies[spec.text], setup))
            elif spec.text in rules:
                options = _options(spec, setup)
                roster.methods.append(calm.CalmMethod(spec.text, decoders.of(spec), rules[spec.text], options))
            else:
                roster.methods.append(_peers()[spec.name](spec, _context(setup, pair)))
        except LoadError as error:
            if spec.text in policies:
                raise
            roster.failed[spec.text] = str(error)
    return roster


def _check_writing(spec: MethodSpec) -> None:
    """Refuse values that cannot be written with, before anything is loaded."""
    from bild.generation.options import GenerationOptions

    try:
        GenerationOptions(**writing_options_of(spec))
    except InputError as error:
        raise InputError(f"method {spec.text!r}: {error}") from None


def _check_small(spec: MethodSpec, policy: Policy, drafter: str | None, pair: Pair) -> None:
    """Refuse a method that needs a small model where there is none, before anything is loaded."""
    from bild.generation.drafting import check_small

    if pair.small is not None or policy.alone == "large":
        return
    if policy.alone == "small":
        raise InputError(f"method {spec.text!r} needs a small model and the pair names none; leave it out, or name one")
    check_small(pair.drafter if drafter is None else drafter, has_small=False)


def _own(spec: MethodSpec, decoder: BigLittleDecoder, policy: Policy, setup: Setup) -> PolicyMethod:
    details = {"runtime": spec.options.get("runtime", setup.runtime)}
    dtype = spec.options.get("dtype", setup.dtype)
    if dtype != "auto":
        details["dtype"] = dtype
    return PolicyMethod(spec.text, decoder, policy, _options(spec, setup), details)


def _options(spec: MethodSpec, setup: Setup) -> dict[str, Any]:
    drafter = drafter_of(spec)
    drafting = {} if drafter is None else {"drafter": drafter}
    return {"max_new_tokens": setup.max_new_tokens, "chat": setup.chat, **drafting, **writing_options_of(spec)}


class _Decoders:
    """One loaded decoder for all methods that share a runtime and a dtype."""

    def __init__(self, setup: Setup, load: Callable[..., BigLittleDecoder] | None) -> None:
        self.setup, self.load = setup, load
        self.loaded: dict[tuple[str, str], BigLittleDecoder] = {}

    def of(self, spec: MethodSpec) -> BigLittleDecoder:
        # CALM runs uncompiled, so do not compile a decoder for it.
        runtime = "eager" if spec.name == calm.NAME else spec.options.get("runtime", self.setup.runtime)
        dtype = spec.options.get("dtype", self.setup.dtype)
        if (runtime, dtype) not in self.loaded:
            self.loaded[runtime, dtype] = self._load(runtime, dtype)
        return self.loaded[runtime, dtype]

    def _load(self, runtime: str, dtype: str) -> BigLittleDecoder:
        from bild.generation import BigLittleDecoder

        setup = self.setup
        load = BigLittleDecoder.from_pretrained if self.load is None else self.load
        names: dict[str, Any] = {"pair": setup.pair, "large": setup.large, "small": setup.small}
        for name in ("drafter", "middle", "middle_window", "reward"):
            if getattr(setup, name) is not None:
                names[name] = getattr(setup, name)
        decoder = load(
            **names, runtime=runtime, dtype=dtype, device=setup.device, trust_remote_code=setup.trust_remote_code
        )
        if setup.src_lang is not None or setup.tgt_lang is not None:
            decoder.set_languages(setup.src_lang, setup.tgt_lang)
        return decoder


def _peers() -> dict[str, Callable[[MethodSpec, PeerContext], Method]]:
    # Peers know other engines; who compares own methods alone need not wait for them.
    from bild.evaluation.peers import PEERS

    return PEERS


def _allowed() -> list[str]:
    return [*PRESETS, calm.NAME, *_peers()]


def _context(setup: Setup, pair: Pair) -> PeerContext:
    import torch

    from bild.models import resolve_device

    return PeerContext(
        large=pair.large,
        small=pair.cheap,
        max_new_tokens=setup.max_new_tokens,
        device=str(resolve_device(setup.device)),
        threads=torch.get_num_threads(),
        src_lang=setup.src_lang,
        tgt_lang=setup.tgt_lang,
    )
