"""The report page: what a reader must find on it, whatever state the run is in."""

import html as html_module
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from markupsafe import escape

from pcpo_ray.commands.report import charts, watching
from pcpo_ray.commands.report.page import write
from pcpo_ray.config import files
from pcpo_ray.runs import intervals, writer
from pcpo_ray.runs.folder import LocalFolder
from pcpo_ray.training.recorder import Recorder

PROMPTS = (
    "<script>alert(1)</script>",
    "a red circle",
    'a "quoted" square',
    "a star & a ring",
    "a cross",
    "a blue ring",
)
WATCHED = ("shapes_oracle", "jpeg_compressibility", "diversity")
STEPS = 6


def recorder(folder, *, watched=(), **changes):
    data = {
        "name": folder.name,
        "steps": STEPS,
        "model": {"kind": "stable_diffusion", "path": "shapes-sd"},
        "prompts": {"kind": "shapes"},
        "sampling": {"steps": 3, "process": {"kind": "ddim"}},
        "rewards": [{"kind": "clip_score"}],
        "credit": {"kind": "reweight"},
        "advantage": {"kind": "group"},
        "objective": {"kind": "log_hinge"},
        "optimizer": {"minibatches": 2},
        "evaluation": {"count": len(PROMPTS), "images": 2, "every": 3, "rewards": [{"kind": name} for name in watched]},
        **changes,
    }
    return Recorder.create(LocalFolder(local=folder), files.parse(data))


def evaluate(record, step, gain, *, missing=False, **more):
    """An evaluation in which the trained reward has risen by `gain`, as the loop writes it."""
    rng = np.random.default_rng(step)
    count, each = record.run.evaluation.count, record.run.evaluation.images
    shape = (count, each)
    scores = np.linspace(0.2, 0.3, each * count).reshape(shape) + gain + rng.normal(0, 0.001, shape)
    values = {"reward": scores, "clip_score": scores}
    values |= {reward.name: rng.normal(size=shape) for reward in record.run.evaluation.rewards}
    if missing:
        values = {name: np.full(shape, np.nan) for name in values}
    columns = {
        "step": np.full(scores.size, step),
        "prompt": [text for text in PROMPTS[:count] for _ in range(each)],
        "position": np.repeat(np.arange(count), each),
        "sample": np.tile(np.arange(each), count),
        **{name: value.ravel() for name, value in values.items()},
    }
    record.samples("evaluations.parquet", step, columns)
    if step in (0, STEPS):
        record.write_images(step, dict(enumerate(rng.integers(0, 256, (*shape, 8, 8, 3), np.uint8))))
    rewards = {name: intervals.estimate(value).row() for name, value in values.items()}
    record.record("evaluation", step, {"rewards": rewards, "images": scores.size, "seconds": 2.0, **more})


def learn(record, step, *, clipped=0.25, columns_too=None, **more):
    """A training step, as the loop writes it."""
    columns = ("clip_fraction", "inactive_fraction", "ratio_std")
    per_timestep = {
        "timestep": [667, 334, 1],
        "native_weight": [0.5, 0.4, 3.2],
        "credit_weight": [1.4, 1.4, 1.4],
        "ratio_mean": [1.0, 1.0, 1.0],
        "gradient_share": [0.3, 0.3, 0.4],
        **{name: [0.0, clipped, None] for name in columns},
        **(columns_too or {}),
    }
    values = {
        "reward_mean": 0.25,
        "clip_fraction": clipped,
        "moved_fraction": 0.97,
        "update_ratio": 1e-4,
        "skipped_gradients": 0,
        "per_timestep": per_timestep,
        "seconds": 10.0,
        "samples": 128 * step,
        "phase_seconds": {"sample_and_score": 6.0, "learn": 3.0, "publish": 0.5},
        "idle": {"samplers": 0.37, "scorers": 0.9, "learner": 0.7},
        "dropped_groups": 1,
        "degenerate_groups": 0,
        "rounding_groups": 0,
        **more,
    }
    record.record("train", step, values)


def finished(folder, *, gain=0.05, clipped=0.25, **changes):
    record = recorder(folder, **changes)
    evaluate(record, 0, 0.0)
    for step in range(1, STEPS + 1):
        learn(record, step, clipped=clipped)
        if step % 3 == 0:
            evaluate(record, step, gain * step / STEPS)
    record.event("first_update", max_log_ratio=0.0)
    record.event("fault", message="samplers-1 lost a task <ActorDiedError>, attempt 1")
    record.event("finished", step=STEPS)
    return record


def page(folder):
    return write(folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """The page of a run that has everything."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    finished(folder, watched=WATCHED)
    return page(folder)


def visible(html):
    """The page's words, without its tags and with single spaces."""
    body = re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def test_prompts_too_few_for_an_interval_are_told_of_none(tmp_path):
    finished(tmp_path / "few", evaluation={"count": 4, "images": 2, "every": 3})
    words = visible(page(tmp_path / "few"))
    assert "; prompts are too few for an interval." in words and "95% interval" not in words
    assert "Where the interval is clear of 0" not in words


def test_the_page_has_the_verdict_and_says_which_rewards_were_trained(html):
    words = visible(html)
    assert "▲ The held-out reward rose." in words
    assert re.search(r"▲ \+0\.\d+ 0 95% interval \+0\.\d+ to \+0\.\d+, 12 images", words)
    assert "The run finished all of its 6 steps." in words
    assert "clip_score trained on" in words
    for name in WATCHED:
        assert f"{name} not trained on" in words
    assert "6 of 48 groups dropped" in words and "Health: 1 fault, 6 of 48 groups dropped" in words
    assert "samplers 37%" in words
    assert "pcpo-ray train runs/run/config.yaml name=run-again" in words


def test_the_workers_of_every_role_are_counted(tmp_path):
    recorder(tmp_path / "run", workers={"samplers": {"workers": 3}, "learner": {"ranks": 2}})
    assert "3 sampling, 1 scoring, 2 learning" in visible(page(tmp_path / "run"))


def test_one_process_is_not_called_several_workers(tmp_path):
    record = recorder(tmp_path / "run", workers={"samplers": {"workers": 3}})
    record.event("started", backend="in-process", device="CPU", cores=2, versions=[], prompts=[])
    words = visible(page(tmp_path / "run"))
    assert "one process that samples, scores and learns in turn" in words and "3 sampling" not in words


def test_only_workers_of_their_own_are_called_idle(tmp_path):
    record = finished(tmp_path / "run")
    assert "had nothing to do" in visible(page(tmp_path / "run"))
    record.event("started", backend="in-process", device="CPU", cores=2, versions=[], prompts=[])
    words = visible(page(tmp_path / "run"))
    assert "had nothing to do" not in words and "Where the time went" in words


GAINED, LOST = (re.compile(rf'class="{way}">.*?enlarge: ([^"]*)"', re.DOTALL) for way in ("gained", "lost"))


def test_those_that_gained_or_lost_most_are_framed_where_they_stand(tmp_path):
    record = recorder(tmp_path / "run")
    evaluate(record, 0, 0.0)
    evaluate(record, STEPS, np.array([[0.1, 0.1], [-0.3, 0.1], [0.1, -0.5], [0.1, 0.1], [-0.1, 0.1], [-0.2, 0.1]]))
    found = page(tmp_path / "run")
    words = visible(found)
    assert "All 12 " in words and "evenly spaced" not in words
    assert "The 3 that gained most, of 8 of 12 whose score rose All of them stand above, framed in blue." in words
    assert "The 3 that lost most, of 4 of 12 whose score fell All of them stand above, framed in orange." in words
    assert len(GAINED.findall(found)) == len(LOST.findall(found)) == 3
    assert found.count("enlarge: ") == 12  # none is there twice
    assert re.search(r"0\.\d{3} → \u2212?0\.\d{3} ▼ \u22120\.[45]\d\d", words)


def test_evenly_spaced_images_come_first_and_none_is_repeated(tmp_path):
    record = recorder(tmp_path / "run", evaluation={"count": len(PROMPTS), "images": 4, "every": 3})
    evaluate(record, 0, 0.0)
    gain = np.full((len(PROMPTS), 4), 0.1)
    # of places 0, 1, 5 and of 3, 4, 7, every second is shown
    gain[0, 0], gain[0, 1], gain[1, 1] = -0.5, -0.4, -0.3
    gain[0, 3], gain[1, 0], gain[1, 3] = 0.5, 0.4, 0.3
    evaluate(record, STEPS, gain)
    found = page(tmp_path / "run")
    words = visible(found)
    assert "12 of 24, evenly spaced" in words and "1 of them stands above, framed in orange." in words
    gained, lost = "The 3 that gained most, of 21 of 24 whose score rose", "The 3 that lost most, of 3 of 24"
    assert words.index("evenly spaced") < words.index(gained) < words.index(lost)
    first = str(escape(PROMPTS[0]))
    assert LOST.findall(found) == [first, first, PROMPTS[1]]
    assert GAINED.findall(found) == [str(escape(PROMPTS[1])), first, PROMPTS[1]]
    assert found.count("enlarge: ") == 16


def test_what_a_judge_read_and_wrote_stands_with_the_time(tmp_path):
    record = recorder(tmp_path / "run")
    assert 'id="tokens"' not in page(tmp_path / "run")
    evaluate(record, 0, 0.0, tokens={"judge": {"prompt": 9000, "completion": 30}})
    learn(record, 1, tokens={"judge": {"prompt": 1000, "completion": 20}})
    learn(record, 2)
    assert "judge 10,000 50 510" in visible(page(tmp_path / "run"))


def test_nothing_lost_is_no_list_of_those_that_lost(tmp_path):
    finished(tmp_path / "run", gain=0.5)
    words = visible(page(tmp_path / "run"))
    assert "that gained most" in words and "that lost most" not in words


def test_a_prompt_is_shown_at_every_evaluation_that_kept_its_image(tmp_path):
    record = finished(tmp_path / "run")
    record.write_images(3, {place: np.zeros((2, 8, 8, 3), np.uint8) for place in (0, 3)})
    found = page(tmp_path / "run")
    assert re.findall(r'alt="(step \d: a [^"]*)"', found) == [f"step {n}: a star &amp; a ring" for n in (0, 3, 6)]
    assert "at 3 evaluations" in visible(found)
    assert "after step 6 (right)" in visible(found)  # pairs need all images, which step 3 does not have


def test_the_page_says_how_to_use_what_was_learned(tmp_path):
    record = finished(tmp_path / "run")
    record.event("checkpoint", step=6, seconds=0.1)
    (found,) = re.findall(r'id="use">(.*?)<h2', page(tmp_path / "run"), flags=re.DOTALL)
    assert "pcpo-ray sample runs/run" in found and "checkpoints/step-000006" in found
    code = html_module.unescape(re.findall(r"<pre>(.*?)</pre>", found, flags=re.DOTALL)[1])
    compile(code, "shown", "exec")
    assert "load_lora_weights" in code and 'pcpo_ray.shapes.checkpoint("shapes-sd")' in code


def test_health_is_said_to_be_good_and_what_is_0_stands_apart(tmp_path):
    record = recorder(tmp_path / "run")
    evaluate(record, 0, 0.0)
    learn(record, 1, dropped_groups=0)
    found = page(tmp_path / "run")
    assert "Health: nothing went wrong" in visible(found)
    (zeros,) = re.findall(r'class="zeros">(.*?)</p>', found, flags=re.DOTALL)
    assert "No monitor sounded the alarm." in zeros and "0 faults of workers" in zeros and "0 of 8 groups" in zeros


def test_two_evaluations_are_points_with_bars_and_more_are_bands():
    def drawn(count):
        steps = {n: intervals.Estimate(mean=n, low=n - 1, high=n + 1) for n in range(count)}
        return charts.reward("r", "r", "u", steps, prompts="held-out prompts", until=4)

    assert "PolyCollection" not in drawn(2) and "LineCollection" in drawn(2)
    assert "FillBetween" in drawn(3) or "PolyCollection" in drawn(3)


def test_a_watched_page_asks_for_itself_again_and_the_last_does_not(tmp_path):
    record = recorder(tmp_path / "run")
    evaluate(record, 0, 0.0)
    path, said, shown = str(tmp_path / "run"), [], []

    def going_on(seconds):
        shown.append((tmp_path / "run" / "report.html").read_text())
        if len(shown) == 1:
            learn(record, 1)
        else:
            record.event("stopped", step=1)

    watching.report(path, watch=True, say=said.append, pause=going_on)
    refreshes = [re.findall(r'http-equiv="refresh" content="(\d+)"', text) for text in shown]
    assert refreshes == [["5"], ["5"]] and "0 of 6 steps" in shown[0] and "1 of 6 steps" in shown[1]
    last = (tmp_path / "run" / "report.html").read_text()
    assert "http-equiv" not in last and "The run was stopped after step 1 of 6" in visible(last)
    assert said[-1].startswith("The run was stopped after step 1")


def test_watching_ends_where_the_runs_process_was_killed(tmp_path, monkeypatch):
    record = recorder(tmp_path / "run")
    evaluate(record, 0, 0.0)
    monkeypatch.setattr(writer, "is_gone", lambda folder: True)
    said = []
    watching.report(str(tmp_path / "run"), watch=True, say=said.append, pause=pytest.fail)
    assert "still going on, or it was killed" in said[-1]


@pytest.mark.parametrize("regularised", [False, True])
def test_kl_and_ema_are_shown_if_the_config_has_them(tmp_path, regularised):
    changes = {
        "objective": {"kind": "log_hinge", "kl": 0.04},
        "optimizer": {"average": 0.995},
    }
    record = recorder(tmp_path / "run", **(changes if regularised else {}))
    evaluate(record, 0, 0.0)
    for step in (1, 2):
        learn(record, step, **({"kl": 0.01 * step} if regularised else {}))
    words = visible(page(tmp_path / "run"))
    assert ("Divergence from the model under the adapter" in words) == regularised
    assert ("0.04 times it is part of the loss" in words) == regularised
    assert ("running mean of the weights (decay 0.995)" in words) == regularised


@pytest.mark.parametrize(
    "gain, tone, words", [(-0.05, "fell", "FELL"), (0.0, "unclear", "NOT clearly change"), (0.05, "rose", "rose")]
)
def test_the_verdict_is_coloured_by_what_it_says(tmp_path, gain, tone, words):
    finished(tmp_path / "run", gain=gain)
    found = re.findall(r'class="verdict (\w+)">.*?<strong>([^<]*)', page(tmp_path / "run"), flags=re.DOTALL)
    assert [shown for shown, _ in found] == [tone] and words in found[0][1]


def test_images_stand_in_pairs_of_before_and_after(html):
    alts = re.findall(r'alt="(before training|after step 6): a red circle"', html)
    assert alts == ["before training", "after step 6"] * 2


def test_the_page_loads_nothing_from_anywhere(html):
    addresses = re.findall(r'(?:src|href|url)\s*[=(]\s*"?([^")\s]*)', html)
    assert addresses and all(address.startswith(("data:image/png;base64,", "#")) for address in addresses)
    assert "<script" not in html and "@import" not in html and "<link" not in html


def test_text_from_the_run_is_escaped(html):
    assert "&lt;script&gt;alert(1)" in html and "&lt;ActorDiedError&gt;" in html and "a &#34;quoted&#34;" in html
    assert "<script>" not in html and "<ActorDiedError>" not in html


def test_ids_are_unique_and_every_reference_has_its_target(html):
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', html)) <= set(ids)


def test_every_tag_is_closed(html):
    class Balance(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open = []

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "img", "input"):  # these have no end
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    balance = Balance()
    balance.feed(html)
    assert balance.open == []


def test_the_same_folder_gives_the_same_bytes(tmp_path):
    finished(tmp_path / "run")
    assert page(tmp_path / "run") == page(tmp_path / "run")


def test_a_run_that_was_killed_is_compared_as_far_as_it_came(tmp_path):
    record = recorder(tmp_path / "run")
    evaluate(record, 0, 0.0)
    for step in range(1, 5):
        learn(record, step)
        if step == 3:
            evaluate(record, step, 0.05)
    for name in ("metrics.jsonl", "events.jsonl"):
        with (tmp_path / "run" / name).open("a") as file:
            file.write('{"kind": "tra')
    words = visible(page(tmp_path / "run"))
    assert "From step 0 to step 3" in words and "the record ends after step 4 of 6" in words
    assert "Only the images from before training are all kept so far" in words


def test_a_run_with_only_the_first_evaluation_has_no_verdict(tmp_path):
    record = recorder(tmp_path / "run")
    evaluate(record, 0, 0.0)
    record.event("failed", error="no <worker> left")
    words = visible(page(tmp_path / "run"))
    assert "No verdict" in words and "only the one before training" in words
    assert "The run failed after step 0 of 6: no &lt;worker&gt; left" in words
    assert "No update has been recorded yet." in words


def test_a_run_that_recorded_nothing_has_a_page_that_says_so(tmp_path):
    recorder(tmp_path / "run")
    words = visible(page(tmp_path / "run"))
    assert "there is none" in words and "No evaluation has been recorded yet." in words


def test_missing_scores_are_named_and_give_no_verdict(tmp_path):
    record = recorder(tmp_path / "run")
    evaluate(record, 0, 0.0)
    evaluate(record, STEPS, 0.0, missing=True)
    words = visible(page(tmp_path / "run"))
    assert "No verdict: no image has a score before and after." in words
    assert "12 of 12 images miss a score" in words and "nan" not in words.lower()


def test_one_prompt_is_not_taken_for_a_verdict(tmp_path):
    record = recorder(tmp_path / "run", evaluation={"count": 1, "images": 2})
    evaluate(record, 0, 0.0)
    evaluate(record, STEPS, 0.05)
    words = visible(page(tmp_path / "run"))
    assert "◆ The held-out reward changed on 1 prompt: no verdict." in words
    assert "Fewer than 6 prompts give no interval" in words and "nan" not in words.lower()
    assert "reward rose" not in words and "▲ rose" not in words
    assert words.count("(no interval)") == 1


@pytest.mark.parametrize("prompts", ["null", "{kind: shapes, form: thing}"])
def test_a_page_of_prompts_that_are_trained_on_calls_nothing_held_out(tmp_path, prompts):
    evaluated = {"count": len(PROMPTS), "images": 2, "held_out": False, "prompts": yaml.safe_load(prompts)}
    quality = {"features": {"kind": "clip"}}
    record = recorder(tmp_path / "run", evaluation={**evaluated, "quality": quality})
    evaluate(record, 0, 0.0, quality={"pairwise": 0.5})
    learn(record, 1)
    evaluate(record, STEPS, 0.05, quality={"pairwise": 0.5})
    found = page(tmp_path / "run")
    assert "held-out" not in found.lower() and "Held out" not in found
    which = "training prompts" if prompts == "null" else "prompts not held out"
    words = visible(found)
    assert f"▲ The reward of {which} rose." in words and f"Evaluations 6 {which} " in words
    assert "it says nothing about prompts that it has not seen" in words


def test_a_page_says_how_evaluations_sampled_if_not_as_in_training(tmp_path):
    own = {"steps": 40, "guidance_scale": 4.5, "deterministic": True}
    record = recorder(tmp_path / "run", evaluation={"count": 6, "images": 2, "sampling": own})
    record.event("started", backend="here", device="CPU", cores=1, versions=[], prompts=["training prompts: 40 of a"])
    evaluate(record, 0, 0.0)
    words = visible(page(tmp_path / "run"))
    assert "guidance 1; evaluations: 40 steps, without noise, guidance 4.5" in words
    assert "training prompts: 40 of a" in words


def test_a_weighted_sum_is_shown_beside_its_terms(tmp_path):
    rewards = [{"kind": "clip_score", "weight": 2.0}, {"kind": "diversity"}]
    finished(tmp_path / "run", rewards=rewards, watched=["diversity"])
    words = visible(page(tmp_path / "run"))
    assert "total trained on" in words and "2 * clip_score + 1 * diversity" in words
    assert "clip_score trained on" in words and "diversity trained on" in words


def test_a_run_that_cannot_clip_says_why_its_fractions_are_0(tmp_path):
    finished(tmp_path / "run", clipped=0.0, optimizer={"minibatches": 1})
    words = visible(page(tmp_path / "run"))
    assert "nothing can be clipped" in words and words.count("0 at every timestep and update.") == 4


def test_passes_over_a_batch_count_as_optimizer_steps(tmp_path):
    finished(tmp_path / "run", optimizer={"minibatches": 1, "epochs": 4})
    words = visible(page(tmp_path / "run"))
    assert "4 optimizer steps on each" in words and "nothing can be clipped" not in words


def test_limits_and_log_ratios_of_other_kinds_are_told_as_such(tmp_path):
    finished(tmp_path / "scaled", objective={"kind": "log_hinge", "clip_scale": "weight"})
    assert "the clip range, scaled by each step" in visible(page(tmp_path / "scaled"))
    replay = {"kind": "log_hinge", "log_ratio": "replay"}
    record = recorder(tmp_path / "replayed", objective=replay, credit={"kind": "native"})
    evaluate(record, 0, 0.0)
    learn(record, 1)
    record.event("first_update", max_log_ratio=1e-6)
    words = visible(page(tmp_path / "replayed"))
    assert "anything but 0 is the rounding of objective.log_ratio=replay" in words and "must be 0" not in words


def test_weights_inside_and_outside_and_both_means_of_the_ratio_are_drawn(tmp_path):
    means = {"ratio_mean": [0.999, 0.998, None], "centred_ratio_mean": [1.0, 1.0001, None]}
    record = recorder(tmp_path / "run", credit={"kind": "flash_grpo"})
    evaluate(record, 0, 0.0)
    learn(record, 1, columns_too={"outside_weight": [2.0, 2.5, 0.5], **means})
    text = page(tmp_path / "run")
    words = visible(text)
    assert (
        "Factor of the loss" in words
        and "The product with the factor outside" in words
        and "Mean of the ratio" in words
    )
    for shown in (
        "inside the clip",
        "product",
        "the sampler's own",
        "as trained on",
        "without the quadratic term",
    ):
        assert shown in text
    assert "Factor of the loss by timestep, noisiest first: from 2 to 0.5" in text
    assert "Mean of the ratio less 1 by timestep, noisiest first: from -0.001 to -0.002" in text
    style = text[: text.index("</style>")]
    assert {name for name in re.findall(r"var\(--(\w+)\)", text) if f"--{name}:" not in style} == set()


def test_the_mismatch_is_drawn_where_it_was_measured(tmp_path):
    recomputed = {"kind": "log_hinge", "old_predictions": "recomputed", "correction": 2.0}
    record = recorder(tmp_path / "run", objective=recomputed, rollout={"max_staleness": 1})
    evaluate(record, 0, 0.0)
    learn(record, 1, columns_too={"mismatch": [1e-5, 3e-5, None]}, mismatch={"rms": 2e-5, "largest": 8e-5})
    learn(record, 2)  # of older weights
    record.event("first_update", max_log_ratio=0.0)
    text = page(tmp_path / "run")
    words = visible(text)
    assert "Mismatch by timestep, noisiest first: from 1e-05 to 3e-05" in text
    assert "Mismatch of sampler and learner against steps: from 2e-05 to 2e-05" in text
    assert "0 by construction" in words and "At 0.001 the run would have stopped" in words
    finished(tmp_path / "sampled")
    assert "Mismatch" not in page(tmp_path / "sampled")


def test_a_run_without_factors_and_from_before_both_means_says_so(tmp_path):
    finished(tmp_path / "run")
    words = visible(page(tmp_path / "run"))
    assert "Factor of the loss" not in words and "While the ratio is 1, it is also the step" in words
    assert "1 at every timestep, or from before it was recorded." in words


def test_a_mask_by_divergence_has_its_threshold_for_a_clip_range(tmp_path):
    finished(tmp_path / "run", objective={"kind": "divergence_mask", "threshold": 3e-5})
    assert "has reached 3e-05 nats a dimension" in visible(page(tmp_path / "run"))


def test_a_part_of_the_steps_for_each_group_is_named(tmp_path):
    finished(
        tmp_path / "run",
        sampling={"steps": 4, "process": {"kind": "ddim"}, "subset": {"kind": "share", "share": 0.5}},
    )
    assert "of them trained (each group on a random 50% of these)" in visible(page(tmp_path / "run"))


def test_rewards_with_advantages_of_their_own_have_no_trained_sum(tmp_path):
    rewards = [{"kind": "clip_score", "weight": 2.0}, {"kind": "diversity"}]
    finished(tmp_path / "run", rewards=rewards, watched=["diversity"], combine="advantages")
    words = visible(page(tmp_path / "run"))
    assert "total sum of scores" in words and "clip_score trained on" in words
    assert words.count("trained on was the sum of each reward") == 2  # the verdict, the table


def test_images_without_a_score_are_counted_in_the_table_and_under_health(tmp_path):
    record = recorder(tmp_path / "run")
    evaluate(record, 0, 0.0)
    learn(record, 1)
    evaluate(record, STEPS, 0.1, missing=True)
    record.event("missing_scores", step=STEPS, prompt="a cat", causes={"clip_score": "it is none"})
    words = visible(page(tmp_path / "run"))
    assert "images have no score at the last evaluation" in words and "Health: 1 group" in words


def test_quality_and_alarms_are_on_the_page_in_plain_words(tmp_path):
    record = recorder(
        tmp_path / "run",
        evaluation={
            "count": len(PROMPTS),
            "images": 2,
            "quality": {"features": {"kind": "clip"}, "reference": {"kind": "shapes"}},
        },
    )
    for step, measures in ((0, {"frechet": 0.25, "pairwise": 0.5}), (STEPS, {"frechet": 0.75, "pairwise": 0.125})):
        evaluate(record, step, 0.1 * step, quality=measures)
    record.event("alarm", step=STEPS, monitor="diversity", text="25% of what it was", action="stop")
    record.event("stopped", step=STEPS, alarm="25% of what it was: the run has stopped")
    page = write(record.folder).read_text()
    words = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    assert "Fréchet distance how far all images together are from the reference: less is better 0.250 0.750" in words
    assert "pairwise distance" in words and "0.500 0.125" in words and "LPIPS" not in words
    assert "in the features of clip, against drawn images" in words
    assert "Alarm at step 6, diversity: 25% of what it was." in words
    assert "ended after step 0 of 6 by its monitors: 25% of what it was: the run has stopped" in words
    assert page.count('aria-label="Fréchet distance against steps') == 1


def test_missing_numbers_and_damaged_lines_leave_the_rest_of_the_page(tmp_path):
    quality = {"features": {"kind": "clip"}, "reference": {"kind": "shapes"}}
    record = recorder(tmp_path / "run", evaluation={"count": len(PROMPTS), "images": 2, "quality": quality})
    none = float("nan")
    evaluate(record, 0, 0.0, quality={"frechet": none, "pairwise": 0.5})
    for step in range(1, STEPS + 1):
        learn(record, step, reward_mean=none if step == 2 else 0.25, gradient_norm=none)
    evaluate(record, STEPS, 0.05, quality={"frechet": 0.5, "pairwise": none})
    path = record.folder / "metrics.jsonl"
    rows = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*rows[:3], b"\0" * 4096, *rows[4:]]))
    words = visible(page(record.folder))
    assert f"Left out are {path}, line 4: not what a run records" in words
    assert "The held-out reward rose" in words and "nan" not in words.lower() and "- 0.500" in words
