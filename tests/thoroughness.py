"""Which of many kinds only ``make test-thorough`` runs."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest

RARELY = re.compile(
    "|".join(
        [
            # Real weights through the compiled runtime: four large graphs.
            r"generation/test_static_decoder\.py::test_the_bundled_pair",
            r"cli/test_early_exit\.py::test_warmup_compiles_it",
            # Kinds of networks that differ little from those that stay, where it is compiling them that takes long.
            r"(marian|mistral|mt5|qwen2)-static",
            r"models/test_static\.py::.*(marian|mistral|mt5|qwen2)",
            r"generation/test_static_decoder\.py::.*(marian|mistral|mt5|qwen2|gpt2-llama|bart-t5|in_between)",
            r"generation/test_early_exit\.py::.*gpt2-static",
            r"models/(early_exit/test_shared|test_threads)\.py::.*gpt2-static",
            r"models/test_rounds_at_once\.py::.*(decoder-only|a_long_prompt)",
            r"models/test_scorer_contract\.py::.*gpt2-static",
            r"models/test_recording\.py::.*(bart|llama|\[3-)",
            r"models/test_compiling\.py::test_a_second_model_of_the_same_weights",
            r"models/test_processes\.py::test_both_sides_of_a_pair",
            r"models/test_recording\.py::test_rows_that_write_on",
            r"models/test_int4\.py::test_a_network_in_int4_compiles",
            r"engine/test_(memory|prefix_cache)\.py::test_compiled_models",
            r"engine/test_(memory|prefix_cache)\.py::.*\[(middle|several)",
            r"engine/test_(memory|prefix_cache)\.py::.*\[(ngram|exit|states)-(large|bild|spec)",
            r"models/test_calm\.py::test_sixteen_and_eight_bits",
            r"models/on_states/test_(reading|at_once)\.py::test_exact_is_the_large_model_alone\[static",
            r"models/test_static\.py::test_bfloat16_differs",
            r"models/test_layers\.py::test_the_parts_together.*\[(llama|gpt2-2|t5-2|bart|windows-1|int8-2)",
            r"models/test_layers\.py::test_the_parts_of_a_few.*\[(bart|gpt2|int8|llama-1|t5-2)",
            # Likewise where it is decoding.
            r"models/test_generation_agrees\.py::.*(marian|mt5|mistral|qwen2)",
            r"models/test_generation_agrees\.py::test_(lossless_policies_with|a_batch_equals|exact_writes).*(bart|gpt2)",
            r"models/test_scorer_contract\.py::.*((bart|gpt2)-recorded|gpt2-eager-|llama-eager-small)",
            r"models/test_one_encoder\.py::test_texts_are.*(exact-bart|bild-t5)",
            r"models/test_threads\.py::.*(bart|gpt2|llama)-eager",
            r"models/(test_scorer_contract|early_exit/test_shared|test_calm)\.py::.*(marian|mistral|mt5|qwen2)",
            r"models/test_(one_encoder|threads|copies)\.py::.*(marian|mt5)",
            r"generation/test_early_exit\.py::.*(mt5|mistral|qwen2)",
            r"generation/test_early_exit\.py::test_exact_is.*(long drafts-4|at once-4|gpt2-eager)",
            r"generation/test_beams\.py::test_texts_and_scores.*(options[12]-(?!llama)|options3-(?!t5)|marian|mistral|mt5|qwen2)",
            r"generation/test_beams\.py::test_batches_lanes.*(marian|llama)",
            r"generation/test_beams\.py::test_draws_are.*(options[12]-(t5|llama)|options0-(t5|bart)|options3-(bart|llama))",
            r"generation/test_middle\.py::test_exact_cascades.*\[(?!t5\])",
            r"generation/test_drafters\.py::test_the_exact_rule_is.*\[(?!t5\]|llama\])",
            r"generation/transformers/test_semantics\.py::.*(bart|options_mean.*gpt2)",
            r"generation/transformers/test_draws\.py::test_warpers.*(bart|gpt2)",
            # What one way of asking, or one policy, shows of the same code.
            r"generation/test_options\.py::test_as_transformers\[.*-large\]",
            r"generation/test_checkpoint_options\.py::test_as_transformers_applies_it\[.*-call\]",
            r"generation/test_inputs\.py::test_what_the_tokenizer_returns.*\[(np-left|pt-right|None-left)",
            r"generation/test_lanes\.py::test_lanes_write_what_one_writes_in_order\[large",
            r"generation/test_decoder\.py::test_a_stream_is_the_text_in_pieces\[small",
            r"cli/test_cli\.py::test_line_n_of_the_results.*options2",
            r"decoding/drafters/test_bandit\.py::test_two_arms.*ucb-(accepted|overlap)",
            r"evaluation/test_roster\.py::test_a_method_that_is_given_beams",
            r"tuning/test_simulation\.py::test_looking_up_equals_running\[(llama|bart)",
            r"cli/test_cli\.py::test_texts_of_one_run_do_not_share",
            # More seeds, and more rules, of the same statistics.
            r"models/test_generation_agrees\.py::test_rejection_sampling_of_a_real_network",
            r"generation/transformers/test_draws\.py::test_rejection_sampling_draws_from.*(-12-|gpt2)",
            r"generation/transformers/test_draws\.py::test_first_tokens_of_thousands_of_draws\[llama",
            r"decoding/test_sampling\.py::test_lossless_policies_have.*-1[23]",
            r"decoding/drafters/test_cascade\.py::test_three_levels_keep_rejection_sampling_lossless\[(js|same|exact)",
            r"decoding/drafters/test_cascade\.py::test_four_levels_too",
            r"tuning/test_agreement\.py::test_prompts_alone.*(same_tokens|same_prefix|perplexity)",
            r"generation/test_middle\.py::test_sampled_rows",
            r"tuning/test_agreement\.py::test_a_confidence_holds",
            r"tuning/test_tune\.py::test_(dev_sets_too_small|some_policy_keeps_any_budget\[None|a_measure_of_quality|time_that_runs_out)",
            r"generation/test_lanes\.py::test_(draws_do_not_depend|lanes_write_what_one_writes_in_order\[bild:)",
            r"generation/test_retranslate\.py::test_a_bias_keeps_more",
            r"evaluation/test_roster\.py::test_peak_memory",
            r"generation/test_decoder\.py::test_batch_16_equals_batch_1\[(large|exact)",
            # One seed, one layout, one policy or one architecture of several that run the same lines.
            r"models/test_scorer_contract\.py::.*\[[02]-",
            r"models/test_ensemble\.py::test_reads_forgets.*\[[02]-",
            r"models/test_ensemble\.py::test_an_unsteered.*(bart|gpt2|llama)",
            r"models/test_generation_agrees\.py::test_(fifty_rows|any_batch_size|a_padded_head).*(llama|gpt2)",
            r"models/test_generation_agrees\.py::test_exact_with_long_drafts.*(bart|gpt2|t5)",
            r"models/test_generation_agrees\.py::test_lossless_policies_with.*(same|llama-noisy)",
            r"models/test_generation_agrees\.py::test_a_batch_equals.*(small|large|t5-bild|llama-exact)",
            r"models/test_generation_agrees\.py::test_each_model_alone.*(bart|gpt2)",
            r"models/test_recording\.py::test_tokens_written.*(adaptive|small|1-speculative|8-exact)",
            r"models/test_rounds_at_once\.py::test_the_same_commits.*(nearly|keeps|-3-(reads|window|hands|bild))",
            r"models/test_copies\.py::.*(bart|llama|t5-saved)",
            r"models/test_calm\.py::.*state-t5",
            r"models/test_threads\.py::test_a_model\[bart",
            r"generation/test_static_decoder\.py::test_the_same_seed.*(adaptive|bild|llama)",
            r"generation/test_static_decoder\.py::test_static_writes.*(adaptive|small|large|bild-llama)",
            r"generation/test_static_decoder\.py::test_static_finds.*large",
            r"generation/test_static_decoder\.py::test_a_batch_of_four.*(adaptive|small|large|exact)",
            r"generation/test_beams\.py::test_texts_and_scores.*(options0-(bart|gpt2|llama)|options1-llama)",
            r"generation/test_beams\.py::test_draws_are.*(options1|options2)",
            r"generation/test_several_texts\.py::.*(bart|gpt2)",
            r"generation/test_early_exit\.py::test_sharing_changes_nothing\[t5-eager",
            r"generation/transformers/test_semantics\.py::test_options_mean.*-llama",
            r"generation/transformers/test_semantics\.py::test_a_(drawn_)?beam_search.*(-llama|-gpt2)",
            r"generation/transformers/test_semantics\.py::test_(stop_strings|exact_is_plain_greedy).*(llama|gpt2)",
            r"generation/transformers/test_draws\.py::test_(seeds_and|the_exact_policy).*(bart|gpt2)",
            r"generation/transformers/test_draws\.py::test_warpers.*(llama|sharp[123])",
            r"generation/transformers/test_draws\.py::test_rejection_sampling_draws_from.*(4\.0-0\.9)",
            r"engine/test_prefix_cache\.py::test_texts_of_one_call.*(-1\]|-8\])",
            r"engine/test_prefix_cache\.py::test_every_text.*(large|speculative|ngram)",
            r"engine/test_memory\.py::test_every_text.*(large|speculative|ngram)",
            r"decoding/test_sampling\.py::test_lossless_policies_have.*(1\.0-1\.0-11|window)",
            r"decoding/drafters/test_cascade\.py::test_two_tests_at_a_position",
            r"decoding/drafters/test_drafters\.py::test_rows_that_join.*(halving|exp3|replay|source|ucb)",
            r"reproduction/test_counting\.py::test_passes_follow.*(llama|gpt2|bart)",
            r"evaluation/test_run\.py::test_(another_run|damaged_files).*\[(options[013]|damage0|\[1\]|\{\])",
            # Further options of commands that are handed on by the same lines.
            r"cli/test_cli\.py::test_(text|sampling)_options.*--(no-repeat|repetition|min-new|max-length|top-p|min-p|seed)",
            r"cli/test_cli\.py::test_beams_reach_the_loop\[policy[12]",
            r"cli/test_cli\.py::test_line_n_of_the_results.*options[01]",
            r"cli/test_draft\.py::test_every_option_arrives\[--(?!layers|choose|reads)",
            # What is tested of another command that goes on in the same way.
            r"reproduction/test_items\.py::test_(a_killed_run|other_inputs)",
            r"reproduction/test_figure2\.py::test_lookups_equal_the_plain_loop\[unaligned",
            r"training/test_train\.py::test_a_run_killed_in_its_last_dev_score",
            r"training/test_train\.py::test_a_run_killed_anywhere.*gpt2",
            r"training/test_align\.py::test_labels_are_the_large_models_texts.*gpt2",
        ]
    )
)
"""Tests whose kind others stand for."""


def mark_rarely(items: Iterable[pytest.Item]) -> None:
    """Leave them to ``make test-thorough``."""
    for item in items:
        if RARELY.search(item.nodeid):
            item.add_marker(pytest.mark.thorough)
