"""What a task costs the driver: each passes through once."""

from pcpo_ray.commands.bench import scheduler
from pcpo_ray.training.dispatcher import Dispatcher
from tests.support import small


def test_every_task_comes_back_in_order_whatever_is_in_flight(small_sd):
    run = scheduler.measured_on(small.run(small_sd))
    stages = scheduler.InstantStages()
    dispatcher = Dispatcher(run, stages, event=scheduler.ignore, say=scheduler.ignore)
    dispatcher.publish(oldest=0)
    for step in (1, 2):
        tasks = [scheduler.task(step, position) for position in range(50)]
        dispatcher.submit(tasks)
        assert [group.rollout.task for group in dispatcher.gather(tasks)] == tasks
    assert len(dispatcher.ledger) == 0 and not stages.samplers.held and not dispatcher.missing
    assert dispatcher.counters.tasks["samplers"]["done"] == {"none": 100}


def test_a_cost_is_per_task(small_sd):
    assert scheduler.cost(scheduler.measured_on(small.run(small_sd)), 10, 20) > 0


def test_rows_are_measured_against_the_fewest_in_flight(small_sd, monkeypatch):
    asked = []

    def cost(run, in_flight):
        asked.append(in_flight)
        return float(in_flight)

    monkeypatch.setattr(scheduler, "cost", cost)
    rows = scheduler.measure(small.run(small_sd), 1, lambda line: None)
    assert [row.ratios for row in rows] == [(10.0,), (100.0,), (1000.0,)]
    assert asked == [100, 10, 100, 10, 1000, 10, 1000, 10, 10000, 10, 10000, 10]
    assert all(row.goal.value == 1.1 and row.reached is False for row in rows)
