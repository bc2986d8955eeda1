"""A page to think with: a small network, every number on it, and the gradient of the weight that is chosen.

The page computes by the chain rule itself (`templates/chainrule.js`); it is one file and needs no network.
"""

from markupsafe import Markup

from bpresearch.report.page import TEMPLATES, in_script, templates
from bpresearch.theory.network import Network

MOST_UNITS = 12
"""Of a layer that can be drawn with every number on it."""


def learner(network: Network, chosen: str) -> str:
    """The page's text.

    Args:
        network: what is drawn.
        chosen: name of the weight whose gradient is shown first.

    Raises:
        ValueError: a layer has too many units to write every number on it.
    """
    if max(network.sizes) > MOST_UNITS:
        raise ValueError(
            f"sizes {list(network.sizes)}: a page with every number has at most {MOST_UNITS} units in a layer"
        )
    scripts = {"chainrule": "chainrule.js", "drawing": "learner_drawing.js", "javascript": "learner.js"}
    return (
        templates()
        .get_template("learner.html")
        .render(
            title=network.title,
            css=Markup((TEMPLATES / "learner.css").read_text()),
            data=Markup(in_script({"network": network.to_dict(), "chosen": chosen})),
            **{name: Markup((TEMPLATES / file).read_text()) for name, file in scripts.items()},
        )
    )
