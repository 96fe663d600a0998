"""Sub-commands other than `run`: each module has a `main` that takes the arguments and returns the exit status."""

# name -> (module, its line in --help)
SUBCOMMANDS = {
    "predict": ("compress.launch.commands.predict", "finds the classes of images, or boxes: predict RUN IMAGE..."),
    "report": ("compress.launch.commands.report", "writes the pages of a run or a sweep again: report FOLDER"),
    "cache": ("compress.launch.commands.cache", "lists, verifies or prunes the cached stages: cache list"),
    "models": ("compress.launch.commands.models", "lists networks with their sizes: models 'timm/*edge*'"),
}
