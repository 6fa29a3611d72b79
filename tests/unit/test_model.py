"""The oracle itself, against answers worked out by hand."""

from datetime import UTC, date, datetime
from fractions import Fraction
from zoneinfo import ZoneInfo

import pytest

from tests.support.model import Metric, Model, Question, Refused
from tests.support.periods import DAY, HOUR, SECOND, Period, bounds, day_start, resolve, windows

NOW = 1_760_000_000 * SECOND
ALL = (NOW - 100 * DAY, NOW + 2 * DAY)


def utc(*fields: int) -> int:
    return int(datetime(*fields, tzinfo=UTC).timestamp()) * SECOND  # type: ignore[misc]


def event(identifier: str, metric: str = "m", value: object = 1, at: int = NOW, **more):
    fields = {"account": "acme", "metric": metric, "value": value, "timestamp": at}
    return fields | {"id": identifier} | more


def model_of(metric: Metric, *events) -> Model:
    model = Model()
    model.put_metric(metric)
    for one in events:
        assert model.ingest(one, NOW) == ("stored", "")
    return model


def total(model: Model, start: int = ALL[0], end: int = ALL[1], account: str = "acme", **more):
    return model.usage(account, Question("m", start, end, **more))


class TestIngest:
    def test_identity_is_account_and_id_and_nothing_else(self):
        model = model_of(Metric("m", "sum"), event("a", value="1.50"))
        assert model.ingest(event("a", value="1.5"), NOW) == ("duplicate", "")
        assert model.ingest(event("a", value="1.6"), NOW) == ("conflict", "")
        assert model.ingest(event("a", value="1.5", at=NOW + 1), NOW) == ("conflict", "")
        assert model.ingest(event("a", value="1.5", account="other"), NOW) == ("stored", "")
        assert total(model).value == Fraction(3, 2)

    def test_identity_comes_before_every_other_rule(self):
        model = model_of(Metric("m", "sum"), event("a"))
        assert model.ingest(event("a", metric="nobody"), NOW) == ("conflict", "")
        assert model.ingest(event("a", value="x"), NOW) == ("conflict", "")
        assert model.ingest(event("a"), NOW + 1000 * DAY) == ("duplicate", "")
        model.delete_metric("m")
        assert model.ingest(event("a"), NOW) == ("duplicate", "")
        assert model.ingest(event("b"), NOW) == ("rejected", "unknown_metric")
        assert total(model).value == 1
        with pytest.raises(Refused, match="unknown_metric"):
            model.usage("acme", Question("nobody", *ALL))

    def test_a_refused_event_claims_no_identity(self):
        model = model_of(Metric("m", "sum"))
        assert model.ingest(event("a", value="nan"), NOW) == ("rejected", "bad_value")
        assert model.ingest(event("a", value=2), NOW) == ("stored", "")

    @pytest.mark.parametrize(
        ("value", "status"),
        [
            ("92233720368547758.07", "stored"),
            ("-92233720368547758.08", "stored"),
            ("92233720368547758.08", "rejected"),
            ("1.230", "stored"),
            ("1.234", "rejected"),
            (92233720368547758, "stored"),
            (92233720368547759, "rejected"),
            ("1e2", "rejected"),
            ("", "rejected"),
            (".5", "rejected"),
            ("+0.5", "stored"),
            (True, "rejected"),
        ],
    )
    def test_a_value_must_fit_the_decimals(self, value, status):
        model = model_of(Metric("m", "sum", decimals=2))
        assert model.ingest(event("a", value=value), NOW)[0] == status

    def test_time_limits_are_inclusive(self):
        model = model_of(Metric("m", "sum"))
        assert model.ingest(event("a", at=NOW - 90 * DAY), NOW) == ("stored", "")
        assert model.ingest(event("b", at=NOW - 90 * DAY - 1), NOW) == ("rejected", "too_old")
        assert model.ingest(event("c", at=NOW + DAY), NOW) == ("stored", "")
        assert model.ingest(event("d", at=NOW + DAY + 1), NOW) == ("rejected", "too_far_ahead")

    def test_accounts_and_ids_are_bounded_in_bytes(self):
        model = model_of(Metric("m", "sum"))
        assert model.ingest(event("a", account=17), NOW) == ("stored", "")
        assert total(model, account="17").count == 1
        assert model.ingest(event("a", account="é" * 64), NOW) == ("stored", "")
        assert model.ingest(event("a", account="é" * 65), NOW) == ("rejected", "bad_account")
        assert model.ingest(event(""), NOW) == ("rejected", "bad_id")

    def test_expiry_forgets_events_and_identities_and_never_goes_back(self):
        model = model_of(Metric("m", "sum"), event("a", at=NOW - DAY), event("b"))
        model.expire(NOW)
        model.expire(NOW - 2 * DAY)
        assert [one.id for one in model.events("acme", *ALL)] == ["b"]
        assert model.ingest(event("a", at=NOW - DAY), NOW) == ("rejected", "too_old")
        assert model.ingest(event("b"), NOW) == ("duplicate", "")


class TestAggregations:
    @pytest.mark.parametrize(
        ("aggregation", "value"),
        [
            ("count", 4),
            ("sum", Fraction("3.5")),
            ("min", -2),
            ("max", 5),
            ("avg", Fraction(7, 8)),
            ("latest", Fraction("0.5")),
            ("first", 5),
            ("unique", 4),
        ],
    )
    def test_each_of_them(self, aggregation, value):
        model = model_of(
            Metric("m", aggregation),
            event("a", value=-2, at=NOW + 1),
            event("b", value="0.5", at=NOW + 2),
            event("c", value=5, at=NOW),
            event("d", value="0", at=NOW + 1),
        )
        assert total(model).value == value

    def test_the_same_amount_written_differently_is_one_value(self):
        model = model_of(Metric("m", "unique"), event("a", value="2.50"), event("b", value="2.5"))
        assert total(model).value == 1

    def test_ties_in_time_go_by_order_stored(self):
        for aggregation, value in (("latest", 2), ("first", 1)):
            model = model_of(Metric("m", aggregation), event("a", value=1), event("b", value=2))
            assert total(model).value == value

    def test_ranges_take_the_start_and_leave_the_end(self):
        model = model_of(Metric("m", "count"), event("a"), event("b", at=NOW + 10))
        assert total(model, NOW, NOW + 10).value == 1
        assert total(model, NOW, NOW + 11).value == 2
        assert total(model, NOW + 1, NOW + 10).value == 0

    def test_nothing_is_zero_or_null(self):
        for aggregation in ("count", "sum", "unique"):
            assert total(model_of(Metric("m", aggregation))).value == 0
        for aggregation in ("min", "max", "avg", "latest", "first"):
            assert total(model_of(Metric("m", aggregation))).value is None

    def test_filters_groups_and_absent_properties(self):
        model = model_of(
            Metric("m", "sum", dimensions=("region", "plan")),
            event("a", value=1, properties={"region": "eu", "plan": "pro"}),
            event("b", value=2, properties={"region": "eu"}),
            event("c", value=4, properties={"region": "us", "other": "x"}),
            event("d", value=8),
        )
        groups = {k: one.value for k, one in total(model, group_by=["region"]).groups.items()}
        assert groups == {("eu",): 3, ("us",): 4, (None,): 8}
        assert total(model, filters={"region": ["eu", "us"]}).value == 7
        assert total(model, filters={"region": ["eu"], "plan": ["pro"]}).value == 1
        assert total(model, filters={"region": [None]}).value == 8
        with pytest.raises(Refused):
            total(model, group_by=["other"])

    def test_subtrees_follow_path_borders(self):
        model = model_of(Metric("m", "count"))
        for account in ("acme", "acme/a", "acme/a/k", "acmeb", "acme/ab"):
            model.ingest(event("a", account=account), NOW)
        question = Question("m", *ALL)
        assert model.usage("acme", question, subtree=True).value == 4
        assert model.usage("acme/a", question, subtree=True).value == 2
        assert model.usage("acme", question).value == 1
        assert len(model.accounts(question)) == 5

    def test_versions_are_chosen_by_the_time_of_the_event(self):
        model = model_of(Metric("m", "sum", decimals=0), event("a", value=2))
        with pytest.raises(Refused, match="metric_conflict"):
            model.put_metric(Metric("m", "sum", decimals=1), NOW)
        assert model.put_metric(Metric("m", "sum", decimals=0)) == "unchanged"
        assert model.put_metric(Metric("m", "sum", decimals=1), NOW, replace=True) == "replaced"
        assert model.ingest(event("b", value="0.5"), NOW) == ("stored", "")
        assert model.ingest(event("c", value="0.5", at=NOW - 1), NOW) == ("rejected", "bad_value")
        assert total(model).value == Fraction(5, 2)


class TestSeats:
    """Presence is [add, remove) for adds and removes in time order, whenever they arrive."""

    def seats(self, *steps: tuple[str, int, str], start: int, end: int) -> Fraction | None:
        model = model_of(
            Metric("m", "unique", unique_on="user"),
            *(
                event(f"e{n}", at=NOW + at, operation=operation, properties={"user": user})
                for n, (operation, at, user) in enumerate(steps)
            ),
        )
        return total(model, NOW + start, NOW + end).value

    def test_a_member_is_present_until_it_is_removed(self):
        steps = (("add", 0, "ann"), ("remove", 10, "ann"), ("add", 5, "bob"))
        assert self.seats(*steps, start=0, end=5) == 1
        assert self.seats(*steps, start=0, end=6) == 2
        assert self.seats(*steps, start=9, end=10) == 2
        assert self.seats(*steps, start=10, end=11) == 1
        assert self.seats(*steps, start=50, end=60) == 1

    def test_events_that_arrive_late_count_where_they_belong(self):
        steps = (("remove", 10, "ann"), ("add", 0, "ann"))
        assert self.seats(*steps, start=9, end=20) == 1
        assert self.seats(*steps, start=10, end=20) == 0

    def test_no_time_is_no_presence(self):
        assert self.seats(("add", 5, "ann"), ("remove", 5, "ann"), start=0, end=9) == 0
        assert self.seats(("remove", 5, "ann"), ("add", 5, "ann"), start=0, end=9) == 1

    def test_plain_events_count_where_they_are_seen(self):
        steps = (("none", 5, "ann"), ("add", 0, "bob"), ("remove", 3, "bob"), ("add", 7, "bob"))
        assert self.seats(*steps, start=4, end=6) == 1
        assert self.seats(*steps, start=6, end=7) == 0
        assert self.seats(*steps, start=0, end=9) == 2

    def test_a_second_add_changes_nothing(self):
        steps = (("add", 0, "ann"), ("add", 4, "ann"), ("remove", 6, "ann"))
        assert self.seats(*steps, start=1, end=3) == 1
        assert self.seats(*steps, start=6, end=9) == 0

    def test_an_event_without_the_property_is_no_member(self):
        model = model_of(Metric("m", "unique", unique_on="user"), event("a"))
        assert (total(model).value, total(model).count) == (0, 1)

    def test_members_stay_when_their_events_expire(self):
        steps = event("a", at=NOW - 9, operation="add", properties={"user": "ann"})
        model = model_of(Metric("m", "unique", unique_on="user"), steps)
        model.expire(NOW)
        assert total(model, NOW, NOW + 5).value == 1
        assert not total(model, NOW, NOW + 5).expired
        assert total(model, NOW - 1, NOW + 5).expired


class TestPeriods:
    def test_months_with_an_anchor_end_on_the_last_day_where_they_are_short(self):
        period = Period("month", anchor_day=31)
        assert bounds(period, utc(2024, 2, 10)) == (utc(2024, 1, 31), utc(2024, 2, 29))
        assert bounds(period, utc(2024, 2, 29)) == (utc(2024, 2, 29), utc(2024, 3, 31))
        assert bounds(period, utc(2025, 5, 1)) == (utc(2025, 4, 30), utc(2025, 5, 31))
        assert bounds(Period("month", 15), utc(2025, 1, 1)) == (utc(2024, 12, 15), utc(2025, 1, 15))

    def test_weeks_quarters_years_and_fixed(self):
        assert bounds(Period("week"), utc(2025, 1, 1)) == (utc(2024, 12, 30), utc(2025, 1, 6))
        assert bounds(Period("quarter"), utc(2025, 12, 31)) == (utc(2025, 10, 1), utc(2026, 1, 1))
        assert bounds(Period("year"), utc(2025, 12, 31)) == (utc(2025, 1, 1), utc(2026, 1, 1))
        fixed = Period("fixed", duration=100, epoch=50 * SECOND)
        assert bounds(fixed, 0) == (-50 * SECOND, 50 * SECOND)
        assert bounds(fixed, 50 * SECOND) == (50 * SECOND, 150 * SECOND)

    def test_named_periods(self):
        month = Period("month")
        assert resolve(month, "current", utc(2025, 3, 9)) == (utc(2025, 3, 1), utc(2025, 4, 1))
        assert resolve(month, "previous", utc(2025, 3, 9)) == (utc(2025, 2, 1), utc(2025, 3, 1))
        assert resolve(month, "2024-02-29", 0) == (utc(2024, 2, 1), utc(2024, 3, 1))

    def test_days_follow_the_clock_of_the_zone(self):
        berlin = Period("day", timezone="Europe/Berlin")
        start, end = bounds(berlin, utc(2025, 3, 30, 12))
        assert (start, end) == (utc(2025, 3, 29, 23), utc(2025, 3, 30, 22))
        start, end = bounds(berlin, utc(2025, 10, 26, 12))
        assert end - start == 25 * HOUR

    def test_a_day_whose_midnight_is_skipped_starts_after_the_gap(self):
        # Beirut: 2024-03-31 00:00 (+2) became 01:00 (+3).
        beirut = ZoneInfo("Asia/Beirut")
        assert day_start(date(2024, 3, 31), beirut) == utc(2024, 3, 30, 22)
        # Samoa left out 2011-12-30 altogether.
        apia = Period("day", timezone="Pacific/Apia")
        assert bounds(apia, utc(2011, 12, 30, 9)) == (utc(2011, 12, 29, 10), utc(2011, 12, 30, 10))
        assert bounds(apia, utc(2011, 12, 30, 10)) == (utc(2011, 12, 30, 10), utc(2011, 12, 31, 10))

    def test_a_day_whose_midnight_comes_twice_starts_at_the_first(self):
        # Havana: 2024-11-03 01:00 (-4) became 00:00 (-5).
        havana = Period("day", timezone="America/Havana")
        start = utc(2024, 11, 3, 4)
        assert bounds(havana, utc(2024, 11, 3, 12)) == (start, start + 25 * HOUR)

    def test_hours_are_those_of_the_clock(self):
        kolkata = Period("hour", timezone="Asia/Kolkata")
        half_past = utc(2025, 1, 1, 0, 30)
        assert bounds(kolkata, utc(2025, 1, 1, 0, 10)) == (half_past - HOUR, half_past)
        berlin = windows("hour", "Europe/Berlin", utc(2025, 10, 25, 22), utc(2025, 10, 26, 23))
        assert [end - start for start, end in berlin] == [HOUR] * 25
        # Lord Howe: at 02:00 (+11) the clock goes back to 01:30 (+10:30), and forward likewise.
        howe = Period("hour", timezone="Australia/Lord_Howe")
        start, end = utc(2025, 4, 5, 14), utc(2025, 4, 5, 15, 30)
        assert bounds(howe, utc(2025, 4, 5, 15, 10)) == (start, end)
        start, end = utc(2025, 10, 4, 15, 30), utc(2025, 10, 4, 16)
        assert bounds(howe, utc(2025, 10, 4, 15, 40)) == (start, end)

    def test_windows_are_clipped_and_empty_ones_appear(self):
        model = model_of(
            Metric("m", "sum"),
            event("a", value=2, at=utc(2025, 10, 8, 12)),
            event("b", value=3, at=utc(2025, 10, 10, 1)),
        )
        start, end = utc(2025, 10, 8, 6), utc(2025, 10, 10, 2)
        answer = total(model, start, end, window="day")
        middle = (utc(2025, 10, 9), utc(2025, 10, 10))
        assert answer.series == [(start, 2, 1), (middle[0], 0, 0), (middle[1], 3, 1)]
        assert answer.newest_event == utc(2025, 10, 10, 1)
