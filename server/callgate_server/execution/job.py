"""The types of a run, under the name the supervisor uses."""

from callgate_server.model.run import (
    Captured,
    CapturedArtifact,
    Cause,
    DeliveredSecret,
    Job,
    OutputListener,
    RunOutcome,
    judge,
)

__all__ = [
    "Captured",
    "CapturedArtifact",
    "Cause",
    "DeliveredSecret",
    "Job",
    "OutputListener",
    "RunOutcome",
    "judge",
]
