() => {
  if (window.gafxAnswered) return;
  const limit = $LIMIT, texts = $TEXTS;
  const show = (visible) => { document.querySelector('#gafx-answer').style.display = visible ? '' : 'none'; };
  // Hides the answer to an earlier file; the next answer is shown by gafxAnswered.
  const note = (text) => {
    document.getElementById('gafx-note').textContent = text;
    show(false);
  };
  // As size and plural of gafx/report/format.py.
  const bytes = (n) => `${n.toLocaleString('en-US')} byte${n === 1 ? '' : 's'}`;
  const size = (n) => n >= 1e9 ? `${(n / 1e9).toFixed(2)} GB` : n >= 1e6 ? `${(n / 1e6).toFixed(1)} MB`
    : n >= 1e3 ? `${(n / 1e3).toFixed(1)} kB` : bytes(n);
  const refusal = (files) => {
    const file = files[0], over = size(file.size) === size(limit) ? bytes(file.size) : size(file.size);
    const kind = files.length > 1 ? 'many' : file.size > limit ? 'large' : !file.size ? 'empty'
      : !/^audio\//.test(file.type) ? 'wrong' : '';
    const values = {name: file.name, size: over, limit: size(limit), more: files.length - 1};
    return kind && texts[kind].replace(/{(\w+)}/g, (_, key) => values[key]) + '.';
  };
  let url = null;
  const play = (file) => {
    if (url) URL.revokeObjectURL(url);
    url = file && URL.createObjectURL(file);
  };
  const check = (event, files) => {
    if (!files || !files.length || !event.target.closest || !event.target.closest('#gafx-audio')) return;
    const text = refusal(files);
    note(text);
    play(text ? null : files[0]);
    if (!text) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    if (event.target.matches('input')) event.target.value = '';
  };
  document.addEventListener('change', (e) => e.target.matches('input[type=file]') && check(e, e.target.files), true);
  document.addEventListener('drop', (e) => check(e, e.dataTransfer && e.dataTransfer.files), true);
  // A file dropped next to the field must not make the browser leave the page.
  for (const kind of ['dragover', 'drop']) document.addEventListener(kind, (e) => e.preventDefault());
  document.addEventListener('click', (e) => {
    if (!e.target.closest || !e.target.closest('#gafx-audio .record-button, #gafx-audio .record')) return;
    note('');
    play(null);
  }, true);
  window.gafxAnswered = () => {
    show(true);
    const player = document.querySelector('#gafx-answer .gafx-player');
    if (!player || !url) return;
    player.src = url;
    player.hidden = false;
  };
}
