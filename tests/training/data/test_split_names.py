import pytest

from training.data.split_names import find_train_split, names_no_class, validation_candidates


@pytest.mark.parametrize("name", ["train", "Train", "TRAIN", "training", "Training"])
def test_a_usual_training_split_is_found_in_any_case(name):
    assert find_train_split(["cats", name, "val"], "train") == name


def test_the_exact_name_is_preferred_and_a_name_that_was_asked_for_is_not_replaced():
    assert find_train_split(["TRAIN", "train", "training"], "train") == "train"
    assert find_train_split(["TRAIN", "training"], "train") == "TRAIN"
    assert find_train_split(["train"], "training") is None
    assert find_train_split(["train"], "fold1") is None


def test_a_validation_split_is_taken_before_a_test_split():
    names = ["testing", "Test", "eval", "dev", "train", "VAL", "valid", "validation"]
    assert validation_candidates(names, "train") == ["validation", "VAL", "valid", "dev", "eval", "Test", "testing"]
    assert validation_candidates(["test", "fold2"], "test") == []


def test_names_of_what_a_folder_is_for_are_no_classes():
    assert all(map(names_no_class, ["images", "train_images", "Test Set", "val-jpg", "IMGS"]))
    assert not any(map(names_no_class, ["ant", "train_station", "test_tube", "image of a cat"]))
