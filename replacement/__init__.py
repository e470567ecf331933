"""The model, its replacement layers, one recorded run, and the held linear map."""
