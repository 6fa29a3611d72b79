"""When what has died is started again."""

from meterd.core.restart import (
    BACK_OFF_SECONDS_MAX,
    FAILURES_MAX,
    HEALTHY_SECONDS,
    RestartPolicy,
)


def test_the_first_restart_is_immediate_and_the_next_ones_back_off() -> None:
    policy = RestartPolicy()
    policy.on_ready(0.0)
    delays = []
    for second in range(10):
        delays.append(policy.on_death(float(second)))
        policy.on_ready(second + 0.5)
    assert delays[:5] == [0.0, 0.1, 0.2, 0.4, 0.8]
    assert delays[-1] == BACK_OFF_SECONDS_MAX
    assert policy.restarts == 10


def test_health_forgets_the_past() -> None:
    policy = RestartPolicy()
    for moment in (0.0, 1.0, 2.0):
        policy.on_ready(moment)
        policy.on_death(moment + 0.5)
    policy.on_ready(10.0)
    policy.on_ready(10.0 + HEALTHY_SECONDS - 1)  # saying it again does not begin anew
    assert policy.on_death(10.0 + HEALTHY_SECONDS) == 0.0


def test_what_is_never_ready_is_given_up() -> None:
    policy = RestartPolicy()
    delays = [policy.on_death(float(second)) for second in range(FAILURES_MAX)]
    assert None not in delays[:-1]
    assert delays[-1] is None


def test_being_ready_once_gives_new_chances() -> None:
    policy = RestartPolicy()
    for second in range(FAILURES_MAX - 1):
        assert policy.on_death(float(second)) is not None
    policy.on_ready(100.0)
    again = [policy.on_death(100.1 + second) for second in range(FAILURES_MAX + 1)]
    assert None not in again[:-1]
    assert again[-1] is None
