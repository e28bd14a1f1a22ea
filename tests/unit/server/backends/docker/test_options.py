"""Settings that must not be wrong in silence."""

import pytest

from callgate_server.backends.docker.options import DockerOptions


@pytest.mark.parametrize("instance", ["", "-", "a=b", "A", "a b", "a/b", "x" * 41])
def test_an_instance_that_would_not_name_our_own_containers_is_refused(instance: str) -> None:
    with pytest.raises(ValueError, match="instance"):
        DockerOptions(instance=instance, boot_id="b")


@pytest.mark.parametrize("instance", ["a", "main", "host-1", "x" * 40])
def test_a_plain_word_is_taken(instance: str) -> None:
    assert DockerOptions(instance=instance, boot_id="b").instance == instance
