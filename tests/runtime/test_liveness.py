from __future__ import annotations

from runtime.liveness import Liveness


def test_a_peer_is_dead_after_three_periods_without_a_sign_and_not_before() -> None:
    peer = Liveness()
    for _ in range(2):
        peer = peer.period_passed()
        assert peer.is_alive
    assert not peer.period_passed().is_alive


def test_a_sign_of_life_starts_the_count_again_and_raises_the_dead() -> None:
    peer = Liveness().period_passed().period_passed().heard().period_passed()
    assert peer.is_alive
    assert peer.lost().heard().is_alive


def test_a_lost_connection_is_death_at_once() -> None:
    assert not Liveness().lost().is_alive


def test_a_peer_is_reborn_if_another_life_of_it_was_known() -> None:
    peer = Liveness()
    assert not peer.is_reborn(5)
    peer = peer.heard(5).heard()
    assert not peer.is_reborn(5)
    assert peer.is_reborn(6)
