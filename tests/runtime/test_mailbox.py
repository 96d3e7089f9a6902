from __future__ import annotations

import functools

import pytest
import trio
import trio.testing

from runtime.actor import Envelope
from runtime.mailbox import Asked, Mailbox
from transport.errors import LocalProtocolError, Overloaded, Unavailable
from transport.messages import ErrorReply, Message, Ping, Pong


def letter(number: int) -> Envelope:
    return Envelope(Ping(request_id=number), received_at=0.0)


def numbers(batch: list[Envelope]) -> list[int]:
    return [envelope.message.request_id for envelope in batch]  # type: ignore[union-attr]


async def test_a_batch_holds_what_is_at_hand_in_order_and_no_more_than_asked_for() -> None:
    mailbox = Mailbox()
    for number in range(5):
        mailbox.put_nowait(letter(number))
    assert numbers(await mailbox.receive_batch(3)) == [0, 1, 2]
    assert numbers(await mailbox.receive_batch(3)) == [3, 4]
    assert len(mailbox) == 0


async def test_a_reader_waits_for_the_first_envelope(
    autojump_clock: trio.testing.MockClock,
) -> None:
    mailbox = Mailbox()
    got: list[int] = []

    async def read() -> None:
        got.extend(numbers(await mailbox.receive_batch(10)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        assert got == []
        mailbox.put_nowait(letter(7))
    assert got == [7]


async def test_a_full_mailbox_refuses_and_counts_until_there_is_room() -> None:
    mailbox = Mailbox("shard-0", capacity=2)
    mailbox.put_nowait(letter(0))
    mailbox.put_nowait(letter(1))
    with pytest.raises(Overloaded, match="shard-0"):
        mailbox.put_nowait(letter(2))
    assert mailbox.n_overloaded == 1
    await mailbox.receive_batch(1)
    mailbox.put_nowait(letter(3))
    assert numbers(await mailbox.receive_batch(9)) == [1, 3]


async def test_a_closed_mailbox_gives_what_it_has_and_then_says_that_it_is_at_its_end() -> None:
    mailbox = Mailbox()
    mailbox.put_nowait(letter(0))
    mailbox.close()
    with pytest.raises(Unavailable, match="draining"):
        mailbox.put_nowait(letter(1))
    assert numbers(await mailbox.receive_batch(9)) == [0]
    assert await mailbox.receive_batch(9) == []
    assert await mailbox.receive_batch(9) == []


async def test_closing_wakes_the_reader() -> None:
    mailbox = Mailbox()
    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                assert await mailbox.receive_batch(9) == []

            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            mailbox.close()


async def test_receiving_is_always_a_checkpoint() -> None:
    mailbox = Mailbox()
    mailbox.put_nowait(letter(0))
    with trio.testing.assert_checkpoints():
        await mailbox.receive_batch(1)
    mailbox.close()
    with trio.testing.assert_checkpoints():
        await mailbox.receive_batch(1)


async def test_a_cancelled_reader_takes_nothing() -> None:
    mailbox = Mailbox()
    mailbox.put_nowait(letter(0))
    with trio.CancelScope() as scope:
        scope.cancel()
        await mailbox.receive_batch(1)
    assert len(mailbox) == 1


def test_an_ask_is_answered_once() -> None:
    answers: list[Message] = []
    asked = Asked(answers.append, {})
    asked(Pong(request_id=1, status="ready"))
    assert len(answers) == 1
    with pytest.raises(LocalProtocolError):
        asked(Pong(request_id=1, status="ready"))


def note(answers: dict[str, Message], name: str, message: Message) -> None:
    answers[name] = message


async def test_an_actor_that_dies_leaves_no_ask_unanswered() -> None:
    mailbox = Mailbox("executor-0")
    answers: dict[str, Message] = {}
    for name in ("done", "taken", "waiting"):
        mailbox.put_ask_nowait(Ping(request_id=0), 0.0, functools.partial(note, answers, name))
    done, taken = await mailbox.receive_batch(2)
    assert done.reply is not None
    done.reply(Pong(request_id=0, status="ready"))
    mailbox.put_nowait(letter(0))
    mailbox.abandon("died", for_good=False)
    assert answers["done"] == Pong(request_id=0, status="ready")
    for name in ("taken", "waiting"):
        want = ErrorReply(request_id=0, code="unavailable", message="executor-0 died")
        assert answers[name] == want
    del taken
    assert len(mailbox) == 0
    assert mailbox.n_dropped == 1


async def test_between_two_lives_of_its_actor_a_mailbox_refuses() -> None:
    mailbox = Mailbox()
    mailbox.abandon("died", for_good=False)
    with pytest.raises(Unavailable, match="restarted"):
        mailbox.put_nowait(letter(0))
    mailbox.reopen()
    mailbox.put_nowait(letter(1))
    assert numbers(await mailbox.receive_batch(9)) == [1]


def test_an_ended_mailbox_stays_so() -> None:
    mailbox = Mailbox()
    mailbox.abandon("has ended", for_good=True)
    mailbox.reopen()
    with pytest.raises(Unavailable, match="not running"):
        mailbox.put_nowait(letter(0))


def test_a_mailbox_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Mailbox("gateway", capacity=0)


async def test_an_actor_that_never_answers_does_not_fill_the_memory() -> None:
    mailbox = Mailbox("gateway", capacity=1)
    answers: list[Message] = []
    for number in range(17):
        mailbox.put_ask_nowait(Ping(request_id=number), 0.0, answers.append)
        await mailbox.receive_batch(1)
    want = ErrorReply(request_id=0, code="unavailable", message="gateway does not answer")
    assert answers == [want]
