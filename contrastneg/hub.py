"""Servers of published weights, asked once whether they are there: libraries would ask again and again for a minute."""

import socket
import sys
import urllib.parse
import urllib.request

TIMEOUT = 5  # seconds to wait for an answer


def answers(url: str) -> bool:
    """Whether the server of a URL can be reached; behind a proxy, which must not be gone around, it is taken to be."""
    if urllib.request.getproxies():
        return True
    server = urllib.parse.urlsplit(url)
    try:
        socket.create_connection((server.hostname, server.port or 443), timeout=TIMEOUT).close()
    except OSError:
        return False
    return True


def hub_answers() -> bool:
    """Whether the Hugging Face hub can be reached."""
    from huggingface_hub.constants import ENDPOINT

    return answers(ENDPOINT)


def use_what_was_fetched() -> None:
    """Where the hub does not answer, from here on look only at what was fetched from it earlier."""
    import huggingface_hub.constants

    if hub_answers():
        return
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:  # keeps a setting of its own
        import datasets.config

        datasets.config.HF_HUB_OFFLINE = True
