"""The offline report: a file a figure, each an info function (numbers) and a drawing function; `page` composes."""
