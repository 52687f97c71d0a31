"""From a slide to an answer: cells scored and called by a model, with what to think of it."""
