import pytest

from training.run.save_schedule import SaveSchedule


def test_steps_are_counted_from_the_last_save():
    schedule = SaveSchedule("3steps", 10)
    assert [step for step in range(10, 20) if schedule.due(step) and schedule.saved(step) is None] == [13, 16, 19]


def test_minutes_are_counted_from_the_last_save():
    now = 100.0
    schedule = SaveSchedule("2min", 0, clock=lambda: now)
    due = []
    for now in range(100, 600, 50):
        if schedule.due(1):
            schedule.saved(1)
            due.append(now)
    assert due == [250, 400, 550]


@pytest.mark.parametrize("text", ["0min", "10", "steps", "-5steps", "5 hours", "1.5min"])
def test_another_text_is_an_error(text):
    with pytest.raises(ValueError, match=r"like 500steps or 10min, got "):
        SaveSchedule(text, 0)
