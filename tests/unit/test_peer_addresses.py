"""Which of two addresses of a node is tried."""

from __future__ import annotations

from meterd.actors.replicating.peer_addresses import TRY_SECONDS, PeerAddresses


def test_each_is_tried_until_there_is_a_connection() -> None:
    addresses = PeerAddresses({2: "new:2", 3: "same:3"})
    known = {2: "old:2", 3: "same:3", 4: "only:4", 5: ""}
    still = {3: "same:3", 4: "only:4"}
    assert addresses.choose(known, (), 0.0) == {2: "old:2"} | still
    assert addresses.choose(known, (), TRY_SECONDS / 2) == {2: "old:2"} | still
    assert addresses.choose(known, (), TRY_SECONDS) == {2: "new:2"} | still
    for later in range(2, 9):  # it stays where it is found
        assert addresses.choose(known, (2,), later * TRY_SECONDS) == {2: "new:2"} | still
    assert addresses.choose(known, (), 9 * TRY_SECONDS) == {2: "old:2"} | still
    # The state has heard of it meanwhile.
    assert addresses.choose(known | {2: "new:2"}, (), 10 * TRY_SECONDS)[2] == "new:2"


def test_a_node_that_only_the_operator_names_is_looked_for_there() -> None:
    assert PeerAddresses({2: "here:2"}).choose({}, (), 0.0) == {2: "here:2"}
