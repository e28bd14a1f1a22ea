from callgate_server.model.call import CallRequest, Deadline, OnDisconnect


def test_a_deadline_counts_down_to_zero_and_no_further():
    deadline = Deadline(100.0)
    assert deadline.remaining_s(97.5) == 2.5
    assert deadline.remaining_s(100.0) == 0.0
    assert deadline.remaining_s(1e9) == 0.0


def test_a_client_that_goes_away_does_not_end_its_call_unless_it_asked_for_that():
    assert CallRequest("a.b", b"{}", "http").on_disconnect is OnDisconnect.DETACH
