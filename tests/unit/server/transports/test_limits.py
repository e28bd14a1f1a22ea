from callgate_server.model.manifest import Limits
from callgate_server.transports.limits import TransportLimits


def ceiling(field: str) -> int:
    [most] = [bound.le for bound in Limits.model_fields[field].metadata if hasattr(bound, "le")]
    return int(most)


def test_the_largest_answer_a_manifest_allows_fits() -> None:
    outputs = 2 * 2 * ceiling("output_kb")  # two streams, each as text and as bytes
    largest_kb = outputs + ceiling("result_kb") + ceiling("artifacts_kb")
    assert TransportLimits().answer_bytes > largest_kb * 1024
