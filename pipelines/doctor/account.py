"""The Hub: where it is, whether it answers, and who may write there."""

from __future__ import annotations

from huggingface_hub import constants, get_session, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from pipelines.doctor.finding import Finding
from pipelines.hub.destination import account
from pipelines.hub_client.client import Hub, reason, status_of
from pipelines.hub_client.transport import HubError

SECONDS = 2.0
"""How long the Hub may take to answer."""
LOG_IN = "To publish, log in with `hf auth login`, or set HF_TOKEN."


def hub() -> Finding:
    """Ask the Hub who we are, once and for at most a few seconds. Never shows the token."""
    endpoint = constants.ENDPOINT
    if is_offline_mode():
        text = f"offline: HF_HUB_OFFLINE is set, so {endpoint} is not asked"
        return Finding("Hub", text, fix="Unset HF_HUB_OFFLINE to download and publish.")
    client = Hub(timeout=SECONDS, retry=False)
    try:
        user, roles, role = client.ask(account)
    except LocalTokenNotFoundError:
        return nobody(client)
    except HubError as error:
        return unreachable(str(error))
    except HfHubHTTPError as error:
        if status_of(error) == 401:
            text = f"{endpoint} does not know the token: {reason(error)}"
            return Finding("Hub", text, "caution", LOG_IN)
        return unreachable(f"{endpoint} refuses: {reason(error)}")
    organisations = [name for name, each in roles.items() if each not in (None, "read")]
    if role == "read":
        text = f"{user} at {endpoint}, with a token that may only read"
        return Finding("Hub", text, "caution", "To publish, use a token that may write.")
    if role == "fineGrained":
        text = f"{user} at {endpoint}, with a fine-grained token"
        fix = "To publish, the token needs write access to the repository."
        return Finding("Hub", text, fix=fix)
    may = ", ".join([user, *organisations])
    return Finding("Hub", f"{user} at {endpoint}; may write to {may}")


def nobody(client: Hub) -> Finding:
    """Return the finding for no token: whether the Hub answers, and how to log in."""
    try:
        client.fetch(lambda: get_session().head(constants.ENDPOINT))
    except HubError as error:
        return unreachable(str(error))
    return Finding("Hub", f"{constants.ENDPOINT} answers; nobody is logged in", "caution", LOG_IN)


def unreachable(text: str) -> Finding:
    """Return the finding for a Hub that does not answer, which stops only what needs it."""
    fix = "Local files and cached models work, faster with HF_HUB_OFFLINE=1. Otherwise check the "
    fix += "network, a proxy and HF_ENDPOINT."
    return Finding("Hub", text, "caution", fix)
