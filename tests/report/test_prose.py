"""The Markdown of the cards becomes parts of text; none of it becomes markup."""

from cmunet_jax.report.prose import Passage, passages


def test_paragraphs_lists_and_code():
    text = "One\nline.\n\n- a\n- **b** c\n\n    x = 1\n    y = 2"
    assert list(passages(text)) == [
        Passage("text", [[("One line.", False)]]),
        Passage("list", [[("a", False)], [("b", True), (" c", False)]]),
        Passage("code", [[("x = 1\ny = 2", False)]]),
    ]


def test_a_dash_within_a_paragraph_and_open_asterisks_are_text():
    assert list(passages("a\n- b **c")) == [Passage("text", [[("a - b **c", False)]])]


def test_markup_stays_text():
    assert list(passages("<b>&amp;")) == [Passage("text", [[("<b>&amp;", False)]])]


def test_nothing_is_nothing():
    assert list(passages(" \n\n")) == []
