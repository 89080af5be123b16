"""The context menu of cells: their class, and the keys of the classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from qtpy.QtWidgets import QInputDialog, QMenu, QWidget


def class_menu(
    parent: QWidget,
    classes: Sequence[str],
    letters: Mapping[str, str],
    decide: Callable[[str], None],
    bind: Callable[[str, str], None],
    *,
    some: bool,
) -> QMenu:
    """Return a menu of classes to give the selected cells.

    Parameters
    ----------
    parent : QWidget
    classes : sequence of str
        To choose from.
    letters : mapping of str to str
        Letter by class.
    decide : callable
        Takes the class that was chosen.
    bind : callable
        Takes a class and its new letter.
    some : bool
        Whether cells are selected.
    """
    menu = QMenu(parent)

    def other() -> None:
        name, ok = QInputDialog.getText(parent, "Another class", "Name of the class; it counts as a white cell")
        if ok and name.strip():
            decide(name)

    def key() -> None:
        name, ok = QInputDialog.getItem(parent, "Key of a class", "Class", list(classes), 0, False)
        if ok:
            letter, ok = QInputDialog.getText(parent, "Key of a class", f"Letter for {name}")
            if ok:
                bind(name, letter)

    for name in classes:
        action = menu.addAction(f"{name}\t{letters.get(name, '').upper()}", lambda name=name: decide(name))
        action.setEnabled(some)
    menu.addAction("another class…", other).setEnabled(some)
    menu.addAction("Change the key of a class…", key).setEnabled(bool(classes))
    return menu
