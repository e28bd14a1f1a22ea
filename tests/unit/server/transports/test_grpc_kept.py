import grpc
import pytest

from callgate_proto.v1 import gateway_pb2 as pb
from support.edge import DIGEST, edge, grpc_stub, metadata


async def test_an_asynchronous_call_and_one_that_waits_for_an_approval_are_answered_with_a_summary() -> None:
    async with edge() as world, grpc_stub(world) as stub:
        request = pb.CallRequest(tool="demo.wait", arguments_json=b"{}", asynchronous=True, priority=0, purpose="Due.")
        later = await stub.Call(request, metadata=metadata())
        asked = await stub.Call(pb.CallRequest(tool="demo.asked", arguments_json=b"{}"), metadata=metadata())
        for running in world.played.calls_seen:
            running.decided.set()
        wanted = world.played.requests[0]
    assert (later.WhichOneof("call"), asked.WhichOneof("call")) == ("summary", "summary")
    assert asked.summary.approval.group == "finance"
    assert (wanted.asynchronous, wanted.priority, wanted.purpose) == (True, 0, "Due.")


async def test_a_priority_that_there_is_not_is_refused() -> None:
    async with edge() as world, grpc_stub(world) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Call(pb.CallRequest(tool="text.echo", arguments_json=b"{}", priority=10), metadata=metadata())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(("after", "seen"), [(None, ["accepted", "output", "answer"]), (0, ["output", "answer"])])
async def test_a_call_is_followed_from_where_a_client_lost_it(after: int | None, seen: list[str]) -> None:
    async with edge() as world, grpc_stub(world) as stub:
        request = pb.CallRequest(tool="demo.wait", arguments_json=b"{}", asynchronous=True)
        made = await stub.Call(request, metadata=metadata())
        await world.played.waiting.wait()
        world.played.release.set()
        stream = stub.FollowCall(pb.FollowCallRequest(call_id=made.summary.call_id, after=after), metadata=metadata())
        events = [reply.event async for reply in stream]
    assert [event.WhichOneof("event") for event in events] == seen
    assert [event.seq for event in events] == list(range(3 - len(seen), 3))


async def test_waiting_is_an_event() -> None:
    async with edge() as world, grpc_stub(world) as stub:
        request = pb.StreamCallRequest(call=pb.CallRequest(tool="demo.asked", arguments_json=b"{}"))
        stream = stub.StreamCall(request, metadata=metadata())
        await stream.read()
        event = await stream.read()
        stream.cancel()
        for running in world.played.calls_seen:
            running.decided.set()
    assert (event.waiting.group, event.waiting.state) == ("finance", "awaiting_approval")
    assert event.waiting.expires_at.ToDatetime().year == 2026


async def test_approvals_are_listed_shown_and_decided() -> None:
    async with edge() as world, grpc_stub(world) as stub:
        [listed] = (await stub.ListApprovals(pb.ListApprovalsRequest(), metadata=metadata())).approvals
        shown = (await stub.GetApproval(pb.GetApprovalRequest(call_id="a1"), metadata=metadata())).approval
        decision = pb.DecideApprovalRequest(call_id="a1", digest=DIGEST, approve=True)
        decided = (await stub.DecideApproval(decision, metadata=metadata())).approval
    assert not listed.HasField("arguments_json")
    assert shown.arguments_json == b'{"amount":9007199254740993}'
    assert (shown.digest, shown.group, shown.purpose, shown.effect) == (
        DIGEST,
        "finance",
        "An invoice is due.",
        "unsafe",
    )
    assert (decided.state, decided.decided_by) == ("approved", "acme/boss")
    assert world.played.asked.decisions == [True]


async def test_dead_letters_are_listed_shown_redriven_given_up_and_settled() -> None:
    async with edge() as world, grpc_stub(world) as stub:
        listed = await stub.ListDeadLetters(pb.ListDeadLettersRequest(), metadata=metadata())
        shown = (await stub.GetDeadLetter(pb.GetDeadLetterRequest(call_id="d1"), metadata=metadata())).dead_letter
        again = (await stub.RedriveDeadLetter(pb.RedriveDeadLetterRequest(call_id="d1"), metadata=metadata())).call
        await stub.DiscardDeadLetter(pb.DiscardDeadLetterRequest(call_id="d1"), metadata=metadata())
        await stub.SettleCall(pb.SettleCallRequest(call_id="d1", happened=True), metadata=metadata())
        with pytest.raises(grpc.aio.AioRpcError) as negative:
            await stub.ListDeadLetters(pb.ListDeadLettersRequest(limit=-1), metadata=metadata())
    assert (listed.total, listed.dead_letters[0]) == (7, shown)
    assert (shown.error.reason, shown.attempts[0].attempt, shown.redrivable) == ("tool_failed", 1, True)
    assert (again.call_id, again.follows) == ("d2", "d1")
    assert (world.played.dead.limits, world.played.dead.buried, world.played.dead.settled) == ([50], ["d1"], [True])
    assert negative.value.code() is grpc.StatusCode.INVALID_ARGUMENT
