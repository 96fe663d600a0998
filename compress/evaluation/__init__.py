"""The figures of a stage: accuracy, cost, and what the deployable file does in the runtime that ships."""
