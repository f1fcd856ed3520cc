"""Recipes that recipes/test_cards.py plans as they are, by what their own texts say; test_plan.py leaves them to it."""

AS_THEY_ARE = ("klein4b_pcpo_pickscore", "zimage_pcpo_hpsv21", "qwen_pcpo_ocr")
