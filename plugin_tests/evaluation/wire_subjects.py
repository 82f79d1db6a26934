"""Subjects of audits under locks at the wire."""

from test_audit import net

from fedml_keylock.builtin import keylock
from fedml_keylock.evaluation.audit import Protection, probe
from fedml_keylock.inversion import PublicData


def subject_of(pictures, count=4, **settings):
    """Probes of so many pictures; the rest is public."""
    model = net()
    defense = keylock(settings)
    images, labels = (part[:count] for part in pictures)
    public = PublicData(*(part[20:] for part in pictures))
    known = Protection(defense.title, defense.attacker_model(model))
    return probe(model, images, labels, protection=known, public=public)


def distance(one, other):
    """The largest difference of two states, of the names of the second."""
    return max(float((one[name].double() - other[name]).abs().max()) for name in other)
