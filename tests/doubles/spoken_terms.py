"""The terms that `listening_model` and `hearing_model` know."""

SPOKEN_TERMS = (
    "atrial fibrillation",
    "myocardial infarction",
    "kubernetes",
    "pneumonia",
    "photosynthesis",
    "helicopter",
    "thermometer",
    "penicillin",
    "gradient descent",
    "linear algebra",
    "saxophone",
)
