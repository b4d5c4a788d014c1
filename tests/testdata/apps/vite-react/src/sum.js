onmessage = ({ data }) => postMessage(data.reduce((left, right) => left + right));
