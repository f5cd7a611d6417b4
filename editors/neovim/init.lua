-- Redstart in Neovim 0.12 or later.
vim.lsp.config('redstart', {
  cmd = { 'redstart', 'lsp' },
  filetypes = {
    'c', 'cpp', 'go', 'java', 'javascript', 'javascriptreact',
    'python', 'rust', 'typescript', 'typescriptreact',
  },
  root_markers = { '.git' },
})
vim.lsp.enable('redstart')
vim.lsp.inline_completion.enable()

-- Characters typed since the suggestion arrived are part of it or make it void:
-- without this, a quick <Tab> would leave them behind the accepted text.
local function fit_to_caret(item)
  local row, col = unpack(vim.api.nvim_win_get_cursor(0))
  local from = item.range
  if type(item.insert_text) ~= 'string' or not from or from.end_row ~= row - 1 or from.end_col >= col then
    return item
  end
  local typed = vim.api.nvim_buf_get_text(0, from.start_row, from.start_col, row - 1, col, {})
  if vim.startswith(item.insert_text, table.concat(typed, '\n')) then
    item.range = vim.range(from.buf, from.start_row, from.start_col, row - 1, col)
    return item
  end
end

vim.keymap.set('i', '<Tab>', function()
  if not vim.lsp.inline_completion.get({ on_accept = fit_to_caret }) then
    return '<Tab>'
  end
end, { expr = true, desc = 'Accept the suggestion, or insert a tab' })
vim.keymap.set('i', '<M-n>', function()
  vim.lsp.inline_completion.select({ count = 1 })
end, { desc = 'Next suggestion' })
vim.keymap.set('i', '<M-p>', function()
  vim.lsp.inline_completion.select({ count = -1 })
end, { desc = 'Previous suggestion' })
