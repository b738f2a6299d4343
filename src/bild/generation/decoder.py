"""The main job: two checkpoints in, one text out, faster than from the large one alone."""

from __future__ import annotations

import copy
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from bild.decoding import Beams, Choice, Commit, Maker, Policy, Rules
from bild.decoding.drafters.cascade import DEFAULT_WINDOW
from bild.edge.connection import DEFAULT_TIMEOUT_S, Channel, Traffic
from bild.engine import Engine, Job, Limits, Middle, Models, PrefixCache, can_keep, opener, small_of
from bild.errors import InputError, check_count
from bild.generation import running
from bild.generation.drafting import check_search, check_small, maker_of
from bild.generation.elsewhere import Elsewhere, choose_small, connect, only_small
from bild.generation.ensembles import steered
from bild.generation.jobs import Preparer
from bild.generation.loading import load_sides
from bild.generation.middle import SMALL, check_middle, check_qualifier
from bild.generation.options import GenerationOptions
from bild.generation.pair import choose_pair
from bild.generation.prompts import SOURCE_OPTIONS, Prompter, as_list, task_prefix
from bild.generation.result import Result
from bild.generation.rewards import RewardLike, check_reward, reward_of, segments_of
from bild.generation.saving import save_pair
from bild.generation.stream import Stream
from bild.models import (
    Model,
    check_kinds,
    check_runtime,
    check_shared_vocabulary,
    check_writes_alone,
    head_size,
    resolve_device,
    rounded_format,
    run_pair,
    run_three,
)
from bild.models.parts import plain_network

logger = logging.getLogger("bild")


class BigLittleDecoder:
    """A small and a large model that decode together.

    Args:
        large: network of the accurate model (draft-and-verify literature: target model).
        small: network of the cheap model (draft model); same vocabulary, same kind. ``"exit:N"``: the first N
            decoder layers of the large one, which share its weights and its cache (section 4.4); ``"blt:local"``: the
            local parts of a byte-latent one (docs/related/blt.md). None: there is none, and ``drafter`` must need none.
        tokenizer: of the pair; None: only token ids can be decoded.
        small_tokenizer: to check that the vocabularies agree; None: only sizes are compared.
        policy: what ``policy="bild"`` means for this pair; default thresholds otherwise.
        middle: network of a model in between, which judges what is drafted before the large one reads it; ``"exit:N"``
            of the large one; ``"small"``: the small one, where ``drafter`` needs none; None: there is none.
        middle_tokenizer: as ``small_tokenizer``.
        middle_window: longest draft that the middle model is given, in tokens, 1…, default 4; how many tokens it
            collects for the large one says the policy (``max_draft_tokens``).
        experts: networks of the same vocabulary whose logits are added to the large one's, each with a weight, so that
            ``[(plus, a), (minus, -a)]`` steers it; ``"unconditioned"``: the large one without its source
            (docs/related/ensemble.md).
        drafter: who drafts where a call does not say: text as in ``"first:ngram,small"``, or a function that makes a
            :class:`~bild.decoding.Drafter` (docs/drafters.md). Default: ``"small"``, the small model.
        reward: what judges segments under ``policy="reward"`` where a call does not say: a classifier's folder or hub
            name, ``"module:function"``, a function of ``(source, before, segment)``, or an object with
            ``score(rows, drafts)`` (docs/related/reward.md).
        runtime: how the networks are run; ``"eager"``, ``"static"`` or ``"auto"``, see :meth:`from_pretrained`.
        verifier: address of a ``bild verify-server`` that holds the large model, in place of ``large``
            (docs/related/sled.md); ``tokenizer`` is then the small model's.
        verifier_timeout_s: longest wait for one of its answers, in seconds, above 0, default 30.

    Raises:
        InputError: a drafter that does not exist, or needs a small model where there is none; likewise a reward.
        LoadError: an encoder-decoder paired with a decoder-only model, or a model that cannot roll back or exit there.
        VerifierError: a verifier that cannot be reached.
        VocabularyError: the models do not share a vocabulary.
    """

    def __init__(
        self,
        large: PreTrainedModel | None = None,
        small: PreTrainedModel | str | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        small_tokenizer: PreTrainedTokenizerBase | None = None,
        middle: PreTrainedModel | str | None = None,
        middle_tokenizer: PreTrainedTokenizerBase | None = None,
        middle_window: int = DEFAULT_WINDOW,
        experts: Sequence[tuple[PreTrainedModel | str, float]] = (),
        policy: Policy | None = None,
        drafter: str | Maker | None = None,
        reward: RewardLike | None = None,
        runtime: str = "eager",
        verifier: str | Channel | None = None,
        verifier_timeout_s: float | None = None,
    ) -> None:
        # Compared before anything is compiled.
        check_runtime(runtime)
        _check_timeout(verifier, verifier_timeout_s)
        large, small, middle = (
            plain_network(network, side) for side, network in (("large", large), ("small", small), ("middle", middle))
        )
        if isinstance(large, str):
            raise InputError(f"large is {large!r}; give a loaded model, or the name to from_pretrained(large=…)")
        experts = [(plain_network(network, "an expert"), weight) for network, weight in experts]
        for side, own in (("tokenizer", tokenizer), ("small_tokenizer", small_tokenizer)):
            if isinstance(own, str | os.PathLike):
                raise InputError(f"{side} is {own!r}; give a loaded tokenizer, or names of models to from_pretrained")
        self.drafter = maker_of("small" if drafter is None else drafter)
        check_small(self.drafter, small is not None)
        check_middle(middle, middle_window, self.drafter, small is not None)
        self._elsewhere: Elsewhere | None = None
        if verifier is not None:
            alone = only_small(large, small, middle, experts)
            second = run_pair(alone, alone, runtime)[0]
            tokenizer = small_tokenizer if tokenizer is None else tokenizer
            self.reward = None if reward is None else reward_of(reward, tokenizer, alone.device)
            self._elsewhere = connect(
                verifier, second, tokenizer, DEFAULT_TIMEOUT_S if verifier_timeout_s is None else verifier_timeout_s
            )
            between = None if middle is None else Middle(second, middle_window, SMALL, SMALL)
            self._settle(self._elsewhere.model, second, between, self._elsewhere.terms.vocab_size)
            self._set(tokenizer, policy, self._elsewhere.generation_config)
            return
        if large is None:
            raise InputError("there is no large model; name one with large=…, or where one is with verifier=…")
        other = large if small is None or isinstance(small, str) else small
        shared = head_size(large)
        steering = [(network, tokenizer) for network, _ in experts]
        for network, own in ((other, small_tokenizer), (middle, middle_tokenizer), *steering):
            if isinstance(network, PreTrainedModel):
                check_kinds(large.config, network.config)
                same = check_shared_vocabulary(tokenizer, own, head_size(large), head_size(network))
                shared = min(shared, same)
        self.reward = None if reward is None else reward_of(reward, tokenizer, large.device)
        cheap: PreTrainedModel | str = large if small is None else small
        if middle in (None, SMALL):
            accurate, second = run_pair(large, cheap, runtime)
            between = None if middle is None else Middle(second, middle_window, SMALL, SMALL)
        else:
            accurate, second, third = run_three(large, cheap, middle, runtime)
            between = Middle(third, middle_window, part=middle if isinstance(middle, str) else None)
        if experts:
            accurate = steered(accurate, experts, runtime)
        self._settle(accurate, None if small is None else second, between, shared, small)
        self._set(tokenizer, policy, large.generation_config or GenerationConfig())

    def _settle(
        self, large: Model, small: Model | None, middle: Middle | None, shared: int, named: object = None
    ) -> None:
        """Hold these models, which know so many token ids together."""
        self.large, self._small, self._middle = large, small, middle
        self.early_exit = named if isinstance(named, str) else None
        for model in self.parts:
            model.vocab_size = shared

    def _set(self, tokenizer: PreTrainedTokenizerBase | None, policy: Policy | None, config: GenerationConfig) -> None:
        self.tokenizer = tokenizer
        self.src_lang: str | None = None
        """See :meth:`set_languages`."""
        self.tgt_lang: str | None = None
        """See :meth:`set_languages`."""
        self.policy = Policy() if policy is None else policy
        self.generation_config: GenerationConfig = config
        for name in dict.fromkeys(type(model.network).__name__ for model in self.parts if not model.batches):
            logger.warning("%s counts positions inside its modules: batches are decoded row by row", name)

    @classmethod
    def from_pretrained(
        cls,
        pair: str | os.PathLike[str] | None = None,
        *,
        large: str | os.PathLike[str] | None = None,
        small: str | os.PathLike[str] | None = None,
        middle: str | os.PathLike[str] | None = None,
        middle_window: int | None = None,
        drafter: str | Maker | None = None,
        reward: RewardLike | None = None,
        runtime: str = "auto",
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "auto",
        revision: str | None = None,
        subfolder: str | None = None,
        trust_remote_code: bool = False,
        verifier: str | Channel | None = None,
        verifier_timeout_s: float | None = None,
    ) -> BigLittleDecoder:
        """Load a pair from disk or the hub; without any name, the bundled German → English one.

        Args:
            pair: folder or ``bild.json`` of a pair; ``large`` and ``small`` override its checkpoints.
            large: folder, GGUF file or hub name of the accurate model: ``NAME[@REVISION][:SUBFOLDER or FILE.gguf]``;
                docs/checkpoints.md has what can be loaded. Or one that others steer:
                ``"ensemble:base=MODEL,plus=MODEL,minus=MODEL,weight=0.5"`` (docs/related/ensemble.md).
            small: likewise of the cheap one; ``"exit:N"``: the first N decoder layers of the large one.
            middle: likewise of a model in between, see :class:`BigLittleDecoder`; ``"exit:N"``, or ``"small"``: the
                small one, where ``drafter`` needs none. Default: the pair's own.
            middle_window: longest draft that it is given, in tokens, 1…; default: the pair's own, or 4.
            drafter: who drafts where a call does not say, see :class:`BigLittleDecoder`; default: the pair's own.
                With one that needs no small model, as ``"ngram"``, ``large`` may be named alone.
            reward: what judges segments, see :class:`BigLittleDecoder`.
            runtime: ``"eager"``: transformers' modules as they are. ``"static"``: compiled, several times
                faster; the first time on a machine this takes a minute or more, the result is kept in
                ``$BILD_CACHE`` (``~/.cache/bild``). ``"auto"``: static where that has been done, else eager.
            dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, ``"float64"``, or ``"auto"``: the
                fastest that is safe on the machine; ``"int8"``: as auto, the weights of linear layers in 8 bits
                (:mod:`bild.models.int8`); ``"int4"``: in 4 (:mod:`bild.models.int4`).
            device: ``"cpu"``, ``"cuda"``, … or ``"auto"``: a GPU where there is one.
            revision: branch, tag or commit of the hub repositories whose names do not say; default: the newest.
            subfolder: where in both folders or repositories the checkpoints are, likewise; default: at the top.
            trust_remote_code: whether code that comes with a checkpoint may run; default False.
            verifier: address of a ``bild verify-server`` that holds the large model, which is then not loaded here:
                of a pair only the small checkpoint and the policy are read.
            verifier_timeout_s: see :class:`BigLittleDecoder`.

        Raises:
            LoadError, VerifierError, VocabularyError, InputError: see :mod:`bild.errors`.
        """
        check_runtime(runtime)
        _check_timeout(verifier, verifier_timeout_s)
        if verifier is None:
            chosen = choose_pair(pair, large, small, drafter, middle, middle_window)
        else:
            chosen = choose_small(pair, large, small, drafter, middle, middle_window)
        where: dict[str, Any] = {"revision": revision, "subfolder": subfolder, "trust_remote_code": trust_remote_code}
        large_network, cheap, rest = load_sides(chosen, dtype=dtype, device=resolve_device(device), **where)
        if verifier is not None:
            rest |= {"verifier": verifier, "verifier_timeout_s": verifier_timeout_s}
        return cls(
            large_network if verifier is None else None,
            cheap,
            **rest,
            policy=chosen.policy,
            drafter=chosen.drafter if drafter is None else drafter,
            reward=reward,
            runtime=runtime,
        )

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the checkpoints, the tokenizer and the policy to a folder that :meth:`from_pretrained` reads.

        Raises:
            InputError: the weights are int8 or int4, which is made when a pair is loaded, the drafter is a function, or
                the large model an ensemble.
        """
        save_pair(self, folder)

    @property
    def small(self) -> Model:
        """The small model.

        Raises:
            InputError: there is none.
        """
        return small_of(self._models)

    @property
    def middle(self) -> Model | None:
        """The model in between, if there is one."""
        return None if self._middle is None else self._middle.model

    def using(self, middle_window: int | None) -> BigLittleDecoder:
        """The same models with another window of the middle one; None: without the middle one."""
        other = copy.copy(self)
        other._middle = (
            None if self._middle is None or middle_window is None else self._middle._replace(window=middle_window)
        )
        return other

    @property
    def parts(self) -> list[Model]:
        """All models that read."""
        middle = self.middle
        return [*self.models, *([] if middle is None or middle in self.models else [middle])]

    @property
    def models(self) -> tuple[Model, ...]:
        """Large, then small if there is one."""
        return (self.large,) if self._small is None else (self.large, self._small)

    @property
    def dtype(self) -> str:
        """Number format of the weights that are here: ``"float32"``, ``"bfloat16"``, …, ``"int8"``, ``"int4"``."""
        here = self.large if self._elsewhere is None else self.small
        rounded = rounded_format(here.network)
        return str(here.dtype).removeprefix("torch.") if rounded is None else rounded

    @property
    def traffic(self) -> Traffic | None:
        """What has crossed the network to the verifier; None where the large model is here."""
        return None if self._elsewhere is None else self._elsewhere.channel.traffic

    @property
    def batches(self) -> bool:
        """Whether rows of different length can share a batch; if not, they are decoded one by one."""
        return all(model.batches for model in self.parts)

    def generate(self, inputs: Any, policy: str | Policy | None = None, **options: Any) -> list[Result]:
        """Decode every input.

        Args:
            inputs: a text, a list of texts, conversations (``[{"role": …, "content": …}]``) or token
                id lists, a tensor ``[B, T]``, or what the tokenizer returns.
            policy: a :class:`~bild.Policy`, or the name of a preset with options as in
                ``"speculative_sampling:window=4"``. ``"bild"``, the default, has the pair's own thresholds.
            options: those of :meth:`generate_each`.

        Returns:
            One :class:`Result` an input, in order.

        Raises:
            InputError: an input or option that cannot be used.
        """
        return list(self.generate_each(inputs, policy, **options))

    def generate_each(
        self,
        inputs: Any,
        policy: str | Policy | None = None,
        *,
        batch_size: int = 1,
        lanes: int = 1,
        num_return_sequences: int = 1,
        attention_mask: Any = None,
        lossless: bool = False,
        drafter: str | Maker | None = None,
        reward: RewardLike | None = None,
        **options: Any,
    ) -> Iterator[Result]:
        """As :meth:`generate`, each result as soon as it and all before it are done.

        Args:
            inputs: see :meth:`generate`. An iterator is asked for its next text when there is room for it, so it
                may be endless.
            policy: see :meth:`generate`.
            batch_size: rows decoded together, 1…, default 1: lowest latency for each. Where one model decodes alone,
                rows that end make room for the next texts. A row's text does not depend on its neighbours (up to
                rounding, which in 16 bits can turn a near tie).
            lanes: batches decoded side by side, 1…, default 1, each by a thread that has ``torch.get_num_threads()``
                for itself: two lanes of one thread write more texts a second than one of two where products are small.
                Load the pair under as many threads as a lane has.
            num_return_sequences: texts drawn for each input, 1…, default 1; so many results follow each other.
            attention_mask: of inputs that are token ids (list, array or tensor), 0 or false where they are padding.
            lossless: insist on the large model's own text; an error with a policy that does not give it.
            drafter: who drafts, see :class:`BigLittleDecoder`; default: :attr:`drafter`.
            reward: what judges segments under ``policy="reward"``, likewise; default: :attr:`reward`.
            options: arguments of :meth:`prompter`, and fields of :class:`GenerationOptions`, under transformers' names.
        """
        prompter, asked = self.asked(options)
        resolved = self.resolve_policy(policy, lossless=lossless, searches=asked.searches)
        rules = self.rules(resolved, asked.choice(), reward, asked.beams(), drafter)
        check_count("batch_size", batch_size)
        check_count("lanes", lanes)
        _check_copies(num_return_sequences, asked)
        # What is there already is looked through before anything is decoded; an iterator as it comes.
        lazy = isinstance(inputs, Iterator)
        items = inputs if lazy else as_list(inputs, attention_mask, self.pad)[0]
        single = not lazy and len(items) == 1
        jobs = self.preparer(prompter, asked).jobs(items, alone=single, copies=num_return_sequences)
        return self.results_each(jobs if lazy else list(jobs), rules, batch_size, drafter=drafter, lanes=lanes)

    def stream(self, text: Any, policy: str | Policy | None = None, **options: Any) -> Stream:
        """Decode one input and hand out its text as it becomes final.

        Args:
            text: one input as for :meth:`generate`.
            policy: see :meth:`generate`.
            options: those of :meth:`generate_each` that shape the one text; and ``memory``, a
                :class:`~bild.engine.Memory` of decoder-only models: a text that begins as the last one did is read
                from where they part.

        Returns:
            An iterator of text pieces, committed tokens only; its ``result`` is set at the end.
        """
        items, _ = as_list(text, options.pop("attention_mask", None), self.pad)
        if len(items) != 1:
            raise InputError(f"stream takes one input, got {len(items)}; use generate for many")
        lossless, drafter = bool(options.pop("lossless", False)), options.pop("drafter", None)
        reward, memory = options.pop("reward", None), options.pop("memory", None)
        if memory is not None and self.large.is_encoder_decoder:
            raise InputError("a memory is of decoder-only models, and this pair has encoders; leave it out")
        prompter, asked = self.asked(options)
        resolved = self.resolve_policy(policy, lossless=lossless, searches=asked.searches)
        models = self._drafting(drafter, resolved)
        rules = self.rules(resolved, asked.choice(), reward, asked.beams(), drafter)
        (job,) = self.preparer(prompter, asked).jobs(items, alone=True)
        start = time.perf_counter()
        written = running.run([job], rules, models, 1, memory=memory)
        return Stream(written, self.tokenizer, start)

    def engine(self, limits: Limits | None = None, **options: Any) -> Engine:
        """An engine that decodes texts of many callers together with this pair (docs/serving.md).

        Args:
            limits: of rows, memory and queue; where rows of different length cannot share a batch, there is one row.
            options: further arguments of :class:`~bild.engine.Engine`.
        """
        limits = Limits() if limits is None else limits
        if not self.batches:
            limits = replace(limits, rows=1)
        keeps = limits.prefix_tokens and can_keep(self._models)
        prefixes = PrefixCache(self._models, limits.prefix_tokens) if keeps else None
        return Engine(opener(self._models), limits, prefixes=prefixes, **options)

    def prompter(
        self,
        *,
        prefix: str | None = None,
        task: str | None = None,
        chat: bool | None = None,
        system: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
    ) -> Prompter:
        """What turns inputs into token ids.

        Args:
            prefix: text put before every input.
            task: name of a task whose prefix a T5 checkpoint brings.
            chat: treat texts as a user's turn; default: where a decoder-only model has a chat template.
            system: system message of that conversation.
            chat_template_kwargs: what else the chat template is told, as ``{"enable_thinking": False}``.
            src_lang: language of the inputs of a multilingual checkpoint, as it spells it (``"deu_Latn"``, ``"de"``);
                default: :attr:`src_lang`.
            tgt_lang: likewise of the outputs; default: :attr:`tgt_lang`.

        Raises:
            InputError: a task or a language the checkpoint does not have.
        """
        return Prompter(
            self.tokenizer,
            self.large.config,
            task_prefix(self.large.config, task) if prefix is None else prefix,
            chat,
            system,
            {} if chat_template_kwargs is None else chat_template_kwargs,
            self.src_lang if src_lang is None else src_lang,
            self.tgt_lang if tgt_lang is None else tgt_lang,
        )

    def set_languages(self, src_lang: str | None, tgt_lang: str | None) -> None:
        """What the languages of a multilingual checkpoint are where a call does not say.

        Args:
            src_lang: of the inputs, as the checkpoint spells it; None: as its tokenizer is set.
            tgt_lang: of the outputs; None: as its generation config says.

        Raises:
            InputError: a language the checkpoint does not have.
        """
        self.asked({"src_lang": src_lang, "tgt_lang": tgt_lang})
        self.src_lang, self.tgt_lang = src_lang, tgt_lang

    def asked(self, options: Mapping[str, Any]) -> tuple[Prompter, GenerationOptions]:
        """What a call asks for: how inputs are read, and how texts are written.

        Args:
            options: arguments of :meth:`prompter` and fields of :class:`GenerationOptions`.

        Raises:
            InputError: an option that does not exist, or a value out of range.
        """
        names = [name for name in SOURCE_OPTIONS if name in options]
        prompter = self.prompter(**{name: options[name] for name in names})
        given = {name: value for name, value in options.items() if name not in names}
        if prompter.tgt_lang is not None:
            given = prompter.target_options(self.generation_config) | given
        return prompter, GenerationOptions.over(self.generation_config, given)

    @property
    def pad(self) -> int | None:
        """The token that rows of one length are filled up with; None where it may also be part of a text."""
        pad = self.generation_config.pad_token_id
        if pad is None and self.tokenizer is not None:
            pad = self.tokenizer.pad_token_id
        ends = GenerationOptions(eos_token_id=self.generation_config.eos_token_id).eos_token_ids
        return None if pad in ends else pad

    def check(self, ids: list[int], **options: Any) -> None:
        """Whether :meth:`generate` would take these token ids with these options.

        Raises:
            InputError: if not, and why.
        """
        options.pop("lossless", None)
        options.pop("drafter", None)
        options.pop("reward", None)
        self.preparer(*self.asked(options)).job(ids, 0)

    def resolve_policy(
        self, policy: str | Policy | None = None, *, lossless: bool = False, searches: bool = False
    ) -> Policy:
        """The policy that ``NAME[:option=value]*`` stands for; ``"bild"`` and None mean the pair's own.

        None means the large model alone where ``searches``, for a beam search is of one model.

        Raises:
            InputError: an unknown name or option, or ``lossless`` with a policy that is not.
        """
        if not isinstance(policy, Policy | str | None):
            raise InputError(f"policy is {policy!r}; give a Policy or the name of a preset")
        try:
            named = ("large" if searches else "bild") if policy is None else policy
            resolved = named if isinstance(named, Policy) else self.policy.parse(named)
        except ValueError as error:
            raise InputError(str(error)) from None
        if lossless and not resolved.lossless:
            raise InputError("this policy does not give the large model's own text; use policy='exact' with lossless")
        return resolved

    def rules(
        self,
        policy: Policy,
        choice: Choice,
        reward: RewardLike | None = None,
        beams: Beams | None = None,
        drafter: str | Maker | None = None,
    ) -> Rules:
        """How the rows of a call are decoded.

        Args:
            policy: of the call.
            choice: how both models pick their tokens.
            reward: what judges segments, see :class:`BigLittleDecoder`; default: :attr:`reward`.
            beams: how texts are searched; None: they are not.
            drafter: who drafts, see :class:`BigLittleDecoder`; default: :attr:`drafter`.

        Raises:
            InputError: the policy needs a reward, a middle or a small model, and there is none; a reward of the call
                has nothing to judge; or beams with what has none.
        """
        models = self._drafting(drafter, policy)
        if beams is not None:
            check_search(policy, models)
        check_reward(policy, reward, self.reward)
        judge = self.reward if reward is None else reward_of(reward, self.tokenizer, self.large.device)
        return Rules(policy, choice, segments_of(policy, judge, self.tokenizer), beams)

    def jobs(self, inputs: Any, **options: Any) -> list[Job]:
        """What :meth:`generate` would decode: each input's encoder tokens and its request to the loop.

        Args:
            inputs: see :meth:`generate`.
            options: arguments of :meth:`prompter` and fields of :class:`GenerationOptions`.

        Raises:
            InputError: an input or option that cannot be used.
        """
        preparer = self.preparer(*self.asked(options))
        items, _ = as_list(inputs, None, self.pad)
        return list(preparer.jobs(items, alone=len(items) == 1))

    def preparer(self, prompter: Prompter, asked: GenerationOptions, salt: str = "") -> Preparer:
        """What makes jobs of the inputs of a call, or of several that ask for the same.

        Args:
            prompter: what turns inputs into token ids.
            asked: options, as :meth:`asked` returns both.
            salt: see :class:`~bild.decoding.Request`.

        Raises:
            InputError: an option that cannot be met, whatever the input.
        """
        return Preparer(prompter, asked, models=self.parts, tokenizer=self.tokenizer, salt=salt)

    def results(
        self,
        jobs: Sequence[Job],
        policy: Policy,
        choice: Choice,
        watch: Callable[[Commit], None] | None = None,
        drafter: str | Maker | None = None,
        reward: RewardLike | None = None,
    ) -> list[Result]:
        """Decode prepared rows, all together where :attr:`batches`.

        Args:
            jobs: one a row.
            policy: when to hand over and what to keep.
            choice: how both models pick their tokens.
            watch: called with every commit as it comes.
            drafter: who drafts, see :class:`BigLittleDecoder`; default: :attr:`drafter`.
            reward: what judges segments, likewise; default: :attr:`reward`.
        """
        rules = self.rules(policy, choice, reward, drafter=drafter)
        return list(self.results_each(jobs, rules, max(1, len(jobs)), watch, drafter))

    def results_each(
        self,
        jobs: Iterable[Job],
        rules: Rules,
        batch_size: int,
        watch: Callable[[Commit], None] | None = None,
        drafter: str | Maker | None = None,
        lanes: int = 1,
    ) -> Iterator[Result]:
        """Decode prepared rows, each result as soon as it and all before it are done.

        Args:
            jobs: asked for one by one, when there is room.
            rules: of all rows.
            batch_size: rows decoded together where :attr:`batches`, 1…
            watch: called with every commit as it comes.
            drafter: who drafts, see :class:`BigLittleDecoder`; default: :attr:`drafter`.
            lanes: batches decoded side by side, 1…
        """
        models = self._drafting(drafter, rules.policy)
        width = batch_size if self.batches else 1
        return running.results(jobs, rules, models, self.tokenizer, width=width, lanes=lanes, watch=watch)

    @property
    def _models(self) -> Models:
        return Models(self.large, self._small, self.drafter, self._middle, self._elsewhere)

    def _drafting(self, drafter: str | Maker | None, policy: Policy) -> Models:
        """The models and who drafts for a call.

        Raises:
            InputError: a drafter that does not exist, or a small model that is needed and not there.
        """
        models = self._models
        if policy.alone == "small":
            check_writes_alone(small_of(models))
        check_qualifier(policy, self._middle is not None)
        if self._elsewhere is not None:
            self._elsewhere.check(policy, self.drafter if drafter is None else maker_of(drafter))
        if drafter is None:
            return models
        check_small(drafter, self._small is not None)
        if self._middle is not None:
            check_middle(self._middle.name, self._middle.window, drafter, self._small is not None)
        return models._replace(drafter=maker_of(drafter))


def _check_timeout(verifier: object, timeout_s: float | None) -> None:
    if verifier is None and timeout_s is not None:
        raise InputError(
            f"verifier_timeout_s is {timeout_s:g}, and there is no verifier to wait for; name one with verifier, or "
            "leave it out"
        )


def _check_copies(count: int, asked: GenerationOptions) -> None:
    """Refuse several texts of an input where they would all be the same one."""
    check_count("num_return_sequences", count)
    if count > 1 and asked.searches:
        raise InputError(
            f"num_return_sequences is {count}, and the one result of a beam search has all its hypotheses; leave it out"
        )
    if count > 1 and not asked.do_sample:
        raise InputError(
            f"num_return_sequences is {count}, and greedy texts of one input are all the same; set do_sample"
        )
